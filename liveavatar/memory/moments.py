"""What a pass needs beyond what rests: the tensors alive at its largest moments, and FSDP2's gathered units.

Each expression repeats what the code of a unit holds at once; T is the tokens of a block, S those of the sink, and a
letter with a 4 is in float32. Runs of fake tensors hold them to the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from liveavatar.memory.sizes import DitSizes, Picture

FEATURES = 12
"""Video frames of speech features in a block."""


@dataclass(frozen=True)
class Moments:
    """Activations of a rank in bytes. `item` is the size of a stored number; `share` the ranks that divide a cell.

    small: matrices rest in one byte a number.
    hoisted: conditioning is prepared ahead, so that `embed` multiplies no timesteps, words or voices.
    """

    dit: DitSizes
    picture: Picture
    item: int = 2
    actors: int = 1
    share: int = 1
    hoisted: bool = False
    small: bool = False

    @property
    def hidden(self) -> int:
        """T: a block's tokens as stored."""
        return self.picture.tokens * self.dit.dim * self.item // self.share

    @property
    def sink(self) -> int:
        """S: the tokens of reference and motion as stored."""
        return self.picture.sink_tokens * self.dit.dim * self.item // self.share

    def _single(self, stored: int) -> int:
        """The float32 copy of something stored; where float32 is stored, no copy is made."""
        return 0 if self.item == 4 else stored * 4 // self.item

    @property
    def extras(self) -> int:
        """What a state carries beside its tokens: words, rotations, voice, timestep, and its inputs."""
        d, tokens = self.dit.dim, self.picture.tokens + self.picture.sink_tokens
        turns = tokens * (d // self.dit.heads // 2) * 8
        voice = self.actors * 3 * 6 * d * 4 + 7 * d * 4
        heard = self.actors * FEATURES * self.dit.audio[0] * self.dit.audio[1] * self.item
        words = 0 if self.hoisted else self.dit.text_len * d * self.item
        return words + turns + voice + heard

    def light(self, cells: int, prefill: bool) -> int:
        """States at rest between units: those of this pass with a prefill, and later those of the pass before too."""
        states = cells + (not prefill)
        return states * (self.hidden + self.extras) + self.sink + self.extras

    def block(self) -> int:
        """Inside a block, beside the states: rotating the sink into place, or the feed-forward's inner width."""
        t, s, t4 = self.hidden, self.sink, self._single(self.hidden)
        rotation = 3 * t + max(2 * t * 4 // self.item + t, t + 2 * s * 4 // self.item + s)
        inner = self.picture.tokens * self.dit.ffn * self.item // self.share
        matrix = self.dit.dim * self.dit.ffn * self.item if self.small else 0  # restored for its product
        feed = t4 + t + max(2 * inner, inner + matrix)
        return max(rotation, feed)

    def embed(self) -> int:
        """Inside `embed`, beside the states: the float32 copy of its largest matrix."""
        if self.hoisted:
            return self.hidden
        d, channels = self.dit.dim, self.dit.audio[1]
        return max(self._single(6 * d * d * self.item), self._single(3 * channels * d * self.item))

    def preparing(self) -> int:
        """Ahead of the cells, no state alive yet: the float32 copy of `embed`'s timestep projection."""
        return self._single(6 * self.dit.dim**2 * self.item) if self.hoisted else 0

    def injector(self) -> int:
        """Inside an injector: queries per actor, attended, masked and summed."""
        return (1 + 2 * self.actors) * self.hidden + self._single(self.hidden)

    def heaviest(self, units: Iterable[str], cells: int, prefill: bool) -> int:
        """The largest moment of a pass over these units whose weights are simply there."""
        inside = max((self.inside(name) for name in units), default=0)
        return self.light(cells, prefill) + inside

    def inside(self, unit: str) -> int:
        """Inside a unit, beside the states."""
        if unit == "embed":
            return self.embed()
        if unit.startswith("blocks."):
            return self.block()
        return self.injector() if unit != "head" else 2 * self.hidden


def gathered(
    units: Sequence[tuple[str, int]],
    times: Callable[[str], int],
    prefetch: int,
    root: int,
    light: int,
    inside: Callable[[str], int],
) -> tuple[int, str]:
    """The most that FSDP2 holds above shards and caches in one pass, activations included, and in which unit.

    A gathered unit exists twice, as the buffer that arrived and as parameters copied out of it; the buffer is let go
    when the next unit has been copied out, and units gathered ahead wait beside it. `times` says how often a unit is
    called in a pass, `root` what stays gathered throughout.
    """
    size = dict(units)
    names = [name for name, _ in units]
    held, last = (root, root), ("root", root)
    most, where = root * 2, "root"
    waiting: dict[str, int] = {}
    for index, name in enumerate(names):
        for _ in range(times(name)):
            waiting[name] = size[name]
            copying = held[0] + last[1] + sum(waiting.values()) + size[name] + light
            last = name, waiting.pop(name)
            for ahead in names[index + 1 : index + 1 + prefetch]:
                waiting.setdefault(ahead, size[ahead])
            computing = held[0] + last[1] + size[name] + sum(waiting.values()) + light + inside(name)
            for now in (copying, computing):
                if now > most:
                    most, where = now, name
    return most, where
