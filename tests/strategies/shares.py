"""Streams whose cells, and pictures whose decoding, ranks share: what workers run of them, by world size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from liveavatar.models.dit.model import AvatarDiT
from liveavatar.sampling.rollout import Rollout
from liveavatar.strategies.fsdp import FsdpFull, HsdpOffload
from liveavatar.strategies.replicated import Replicated
from liveavatar.strategies.stream import FsdpStream
from tests.scene import conditioning, make_rollout, meta_dit

KINDS = {kind.name: kind for kind in (Replicated, FsdpStream, FsdpFull, HsdpOffload)}
WIDTHS = {2: 32, 4: 32, 5: 40, 6: 48}
"""Width of the model by its heads."""


@dataclass(frozen=True)
class ShareCase:
    """One stream, `degree` ranks to a cell; 7 blocks: the ring wraps and the sink is refreshed after 4.

    `side` is that of a square latent picture; 10 gives 25 tokens a frame, 75 a block and 58 in the sink.
    """

    strategy: str
    degree: int
    heads: int = 2
    steps: int = 3
    actors: int = 1
    side: int = 10
    in_flight: int = 1
    dtype: str = "float32"
    delays: bool = False
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        words = [self.strategy, f"{self.degree}_of_{self.heads}_heads", f"{self.steps}_steps", f"side_{self.side}"]
        words += [f"{key}_{value}" for key, value in self.options.items()]
        words += [f"{self.actors}_actors"] * (self.actors > 1) + [f"{self.in_flight}_in_flight"] * (self.in_flight > 1)
        return "-".join([*words, *[self.dtype] * (self.dtype != "float32"), *["delays"] * self.delays])

    @property
    def sizes(self) -> dict[str, int]:
        return {"num_heads": self.heads, "dim": WIDTHS[self.heads]}

    @property
    def truth(self) -> tuple[int, int, int, int, str]:
        """What the latents depend on."""
        return self.heads, self.steps, self.actors, self.side, self.dtype

    def model(self) -> AvatarDiT:
        return meta_dit(**self.sizes)

    def rollout(self, model: AvatarDiT) -> Rollout:
        given = conditioning(self.side, self.side, actors=self.actors)
        return make_rollout(model, given, steps=self.steps, cells_in_flight=self.in_flight)


def replicated(degree: int, **more: Any) -> ShareCase:
    return ShareCase(Replicated.name, degree, **more)


def stream(degree: int, more: dict[str, Any] | None = None, **options: Any) -> ShareCase:
    return ShareCase(FsdpStream.name, degree, options=options, **(more or {}))


TWO_VOICES, FOUR, WAVE, LATE = {"actors": 2}, {"steps": 4}, {"in_flight": 3}, {"delays": True}

SHARES: dict[int, tuple[ShareCase, ...]] = {
    1: (replicated(1),),
    2: (
        replicated(1),
        replicated(2, **FOUR),
        replicated(2, **TWO_VOICES, **WAVE),
        replicated(2, dtype="bfloat16"),
        replicated(2, side=16, **TWO_VOICES, **LATE),
        stream(2, WAVE, source="peers", resident=1, debug=True),
        stream(2, {**TWO_VOICES, **LATE}, source="host", caches="host"),
        ShareCase(FsdpFull.name, 2, **FOUR),
        ShareCase(HsdpOffload.name, 2, actors=2),
    ),
    3: (replicated(3, heads=6, **TWO_VOICES), stream(3, {"heads": 6, **FOUR, **LATE}, source="peers")),
    4: (
        replicated(4, heads=4, **TWO_VOICES),
        replicated(2, heads=4, **WAVE),
        stream(4, {"heads": 4, **WAVE}, source="peers"),
        stream(2, {"heads": 2, **TWO_VOICES}, source="peers", slots=3),
        ShareCase(HsdpOffload.name, 2, heads=4, options={"shard_size": 2}),
        ShareCase(FsdpFull.name, 4, heads=4, delays=True),
    ),
    5: (replicated(5, heads=5, **TWO_VOICES, **LATE), stream(5, {"heads": 5, **FOUR, **WAVE}, source="peers")),
}


@dataclass(frozen=True)
class SplitCase:
    """The decoding of one stream of pictures, h × w latent pixels, shared by all ranks; fed in pieces."""

    h: int
    w: int
    dtype: str = "float64"
    pieces: tuple[int, ...] = (1, 3, 2)

    @property
    def name(self) -> str:
        return f"split-{self.h}x{self.w}-{self.dtype}"

    @property
    def lines(self) -> int:
        return max(self.h, self.w)


SPLITS: dict[int, tuple[SplitCase, ...]] = {
    2: (SplitCase(5, 4), SplitCase(4, 7), SplitCase(9, 6, "float32")),
    3: (SplitCase(8, 3),),
    4: (SplitCase(4, 4),),
    5: (SplitCase(3, 7), SplitCase(5, 2)),
}
TOO_FEW = SplitCase(2, 3)
"""Three lines, refused by more ranks."""

GOLDENS = ("dit_stream", "dit_multi_actor", "dit_local_attn")
"""Recorded streams that two ranks of a group reproduce."""
