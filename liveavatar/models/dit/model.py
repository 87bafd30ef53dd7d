"""AvatarDiT: the whole as the fold of its units.

Notable: the model never learns where its weights rest. Before a pass it announces the units of the pass to `residency`,
and enters each unit through it; a strategy may bring the weights in and let them go. A unit serves all states of a pass
before the next unit is entered, so that one arrival of its weights can serve several cells. What of a unit sees no
video token is a part of its own: `prepare` is a pass over such parts.
It is long because the first and the last unit stand here, beside the whole that gives them their place.
"""

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from liveavatar.models.dit.audio import STREAMS, AdaIn, AudioEncoder, Injector
from liveavatar.models.dit.block import Block
from liveavatar.models.dit.cache import CacheShape
from liveavatar.models.dit.context import FramePacker, Grid, tokens
from liveavatar.models.dit.prepared import Prepared, PreparedPrompt, PreparedSteps, PreparedVoice
from liveavatar.models.dit.residency import Part, Residency, Resident
from liveavatar.models.dit.spread import Alone, Spread
from liveavatar.models.dit.state import CellInput, CellState, SinkInput, Stretches, Unit, parameters_dtype
from liveavatar.ops.embed import linear_float32, modulate, plain_norm, sinusoid, unpatchify

__all__ = ["AvatarDiT", "Embed", "Head", "Residency", "Resident"]


class Embed(Unit):
    """Inputs to tokens: patches, pose, reference and motion; timestep, text and voice to what the blocks need."""

    cold: ClassVar = {
        "steps": ["time_embedding", "time_projection"],
        "prompt": ["text_embedding"],
        "voice": ["audio_encoder"],
    }

    def __init__(
        self,
        dim: int,
        in_dim: int,
        cond_dim: int,
        freq_dim: int,
        text_dim: int,
        text_len: int,
        audio_dim: int,
        audio_layers: int,
        audio_left_frames: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.freq_dim, self.text_len = freq_dim, text_len
        self.patch_embedding = nn.Conv3d(in_dim, dim, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.cond_encoder = nn.Conv3d(cond_dim, dim, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.trainable_cond_mask = nn.Embedding(3, dim)
        self.frame_packer = FramePacker(in_dim, dim)
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Linear(dim, 6 * dim)
        self.audio_encoder = AudioEncoder(audio_layers, audio_dim, dim, audio_left_frames, eps)

    def embed_time(self, timesteps: Float[Tensor, " rows"]) -> tuple[Tensor, Tensor]:
        """Time embedding [rows, d] and its projection [rows, 6, d], in float32."""
        first, _, second = self.time_embedding
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        time = linear_float32(F.silu(linear_float32(sinusoid(timesteps, self.freq_dim), first)), second)
        return time, linear_float32(F.silu(time), self.time_projection).unflatten(-1, (6, -1))

    def forward(self, state: CellState) -> CellState:
        inputs = state.inputs
        if isinstance(inputs, SinkInput):
            state.x = self._condition_tokens(inputs)
        else:
            state.x = self._noisy_tokens(inputs)
            if state.voice is None:
                state.voice, state.tone = self.audio_encoder(inputs.audio, inputs.latents.shape[2])
        state.x = state.x[:, state.share.own]
        if state.time is None:
            time, modulation = self._row(inputs.timestep)
            batch = len(state.x)
            state.time, state.modulation = time.expand(batch, -1, -1), modulation.expand(batch, -1, -1, -1)
        if state.text is None:
            state.text = self._words(inputs.text)
        return state

    def prepare(self, made: Prepared) -> None:
        if isinstance(made, PreparedSteps):
            for number, timestep in enumerate(made.timesteps):
                time, modulation = self._row(timestep)
                made.keep("time", time, number)
                made.keep("modulation", modulation, number)
        elif isinstance(made, PreparedPrompt):
            made.keep("text", self._words(made.source))
        elif isinstance(made, PreparedVoice):
            assert made.source is not None
            voice, tone = self.audio_encoder(made.source, made.frames)
            made.keep("voice", voice)
            made.keep("tone", tone)

    def _row(self, timestep: float) -> tuple[Tensor, Tensor]:
        """Time embedding [1, 1, d] and its projection [1, 1, 6, d]: of all tokens alike."""
        device = self.time_projection.weight.device
        time, projected = self.embed_time(torch.tensor([timestep], dtype=torch.float32, device=device))
        return time.unsqueeze(0), projected.unsqueeze(0)

    def _words(self, text: Float[Tensor, "b words text_dim"]) -> Float[Tensor, "b padded d"]:
        """The prompt, padded before it is embedded: all of it is attended."""
        missing = self.text_len - text.shape[1]
        return self.text_embedding(F.pad(text.to(parameters_dtype(self.text_embedding)), (0, 0, 0, missing)))

    def _noisy_tokens(self, cell: CellInput) -> Tensor:
        store = self.patch_embedding.weight.dtype
        x = self.patch_embedding(cell.latents.to(store)) + self.cond_encoder(cell.pose.to(store))
        return tokens(x) + self.trainable_cond_mask.weight[0]

    def _condition_tokens(self, sink: SinkInput) -> Tensor:
        store = self.patch_embedding.weight.dtype
        reference = tokens(self.patch_embedding(sink.reference.to(store))) + self.trainable_cond_mask.weight[1]
        motion = self.frame_packer(sink.motion.to(store)) + self.trainable_cond_mask.weight[2]
        return torch.cat((reference, motion), dim=1)


class Head(Unit):
    """Tokens to the velocity of the latents, in float32, driven by the time embedding itself."""

    def __init__(self, dim: int, out_dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.modulation = nn.Parameter(torch.zeros(1, 2, dim))
        self.head = nn.Linear(dim, 4 * out_dim)

    def serves(self, state: CellState) -> bool:
        return not state.is_sink

    def values(self, x: Float[Tensor, "b tokens d"], time: Float[Tensor, "b groups d"]) -> Float[Tensor, "b tokens v"]:
        shift, scale = (self.modulation.float().unsqueeze(1) + time.unsqueeze(2)).unbind(2)
        return linear_float32(modulate(plain_norm(x.float(), self.eps), shift, scale), self.head)

    stretches: ClassVar[Stretches] = (values,)

    def forward(self, state: CellState) -> CellState:
        assert state.time is not None
        _, _, frames, h, w = state.cell.latents.shape
        (values,) = self.stretches
        found = state.share.gather(values(self, state.hidden, state.time))
        picture = unpatchify(found, frames, h // 2, w // 2)
        state.output = picture.to(state.cell.latents.dtype)
        return state


class AvatarDiT(nn.Module):
    """The causal speech-to-video transformer of Wan2.2-S2V with LiveAvatar's per-step caches.

    Keywords carry the names of the published `config.json`. Weights may be built on `meta`; a strategy brings them to
    life. With `hoist`, conditioning is prepared ahead of the cells, the voices of so many blocks in one pass, by parts
    that move by themselves; a strategy that lends weights inside a unit's own forward only sets it to 0. `cache_kind`
    `fp8` or `int8` lets keys and values rest in one byte a number. Raises ValueError for sizes that cannot work.
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        num_heads: int,
        num_layers: int,
        audio_inject_layers: Sequence[int],
        audio_dim: int,
        audio_layers: int,
        text_dim: int,
        text_len: int,
        freq_dim: int = 256,
        in_dim: int = 16,
        out_dim: int = 16,
        cond_dim: int = 16,
        audio_left_frames: int = 73,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if dim % (2 * num_heads) or dim % STREAMS:
            raise ValueError(
                f"model.dit.dim={dim} does not divide into model.dit.num_heads={num_heads} heads of even width and "
                f"{STREAMS} audio streams: choose a dim that is a multiple of {math.lcm(2 * num_heads, STREAMS)}"
            )
        outside = [i for i in audio_inject_layers if not 0 <= i < num_layers]
        if outside:
            raise ValueError(
                f"model.dit.audio_inject_layers names {outside}, but with model.dit.num_layers={num_layers} the blocks "
                f"are numbered 0 to {num_layers - 1}"
            )
        if len(set(audio_inject_layers)) < len(audio_inject_layers):
            raise ValueError(
                f"model.dit.audio_inject_layers={list(audio_inject_layers)} names a block twice: "
                "one injector follows a block"
            )
        self.dim, self.num_heads, self.num_layers, self.text_len = dim, num_heads, num_layers, text_len
        self.in_dim, self.text_dim, self.audio = in_dim, text_dim, (audio_layers, audio_dim)
        self.inject_after = {layer: j for j, layer in enumerate(audio_inject_layers)}
        self.embed = Embed(
            dim,
            in_dim,
            cond_dim,
            freq_dim,
            text_dim,
            text_len,
            audio_dim,
            audio_layers,
            audio_left_frames,
            eps,
        )
        self.blocks = nn.ModuleList(Block(i, dim, ffn_dim, num_heads, eps) for i in range(num_layers))
        self.adain = nn.ModuleList(AdaIn(j, dim) for j in range(len(audio_inject_layers)))
        self.injectors = nn.ModuleList(Injector(j, dim, num_heads, eps) for j in range(len(audio_inject_layers)))
        self.head = Head(dim, out_dim, eps)
        self.residency: Residency = Resident()
        self.spread: Spread = Alone()
        self.stage = range(num_layers)
        self.hoist = 1
        self.cache_kind: str | None = None

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def dtype(self) -> torch.dtype:
        return parameters_dtype(self)

    def units(self) -> dict[str, Unit]:
        """The units of this stage in the order of a pass, by name, which is also the prefix of their parameters.

        `stage` is the range of layers that are computed here: all of them, unless a pipeline divides the model. `embed`
        belongs to the stage of the first layer, `head` to that of the last; a stage without layers has neither.
        """
        names = ["embed"] if 0 in self.stage else []
        for layer in self.stage:
            names.append(f"blocks.{layer}")
            if layer in self.inject_after:
                j = self.inject_after[layer]
                names += [f"adain.{j}", f"injectors.{j}"]
        names += ["head"] if self.num_layers - 1 in self.stage else []
        units = {name: self.get_submodule(name) for name in names}
        return {name: unit for name, unit in units.items() if isinstance(unit, Unit)}

    def parts(self) -> dict[str, Part]:
        """What moves by itself, by the name under which `residency` is asked for it: units or, where the model hoists,
        their hot parts and the parts that prepare conditioning."""
        if not self.hoist:
            return {
                name: Part(unit, tuple(p for p, _ in unit.named_parameters())) for name, unit in self.units().items()
            }
        found = {}
        for name, unit in self.units().items():
            found[name] = Part(unit, unit.part())
            found |= {f"{name}/{kind}": Part(unit, unit.part(kind)) for kind in unit.cold}
        return {name: part for name, part in found.items() if part.names}

    def preparing(self, kinds: Iterable[str]) -> list[str]:
        """The parts that prepare conditioning of these kinds, in order."""
        return [f"{name}/{kind}" for kind in kinds for name, unit in self.units().items() if kind in unit.cold]

    def cache_shape(self, grid: Grid, frames: int = 12) -> CacheShape:
        """Sizes of one stream's caches on that grid, as held here; `frames` is the window in latent frames."""
        return CacheShape(
            layers=len(self.stage),
            heads=self.num_heads // self.spread.degree,
            channels=self.head_dim,
            frame_tokens=grid.frame_tokens,
            sink_tokens=grid.sink_tokens,
            frames=frames,
            first_layer=self.stage.start,
            kind=self.cache_kind,
        )

    def prepare(self, made: Sequence[Prepared], then: Sequence[str] | None = None) -> None:
        """Make conditioning ready, each part of a unit serving all that it has a share in before the next is entered.

        A stage without `embed` needs text, voice and tone given. `then` as in `Residency.begin`.
        """
        names, units = self.preparing(dict.fromkeys(one.kind for one in made)), self.units()
        self.residency.begin(names, then)
        for name in names:
            unit, _, kind = name.partition("/")
            with self.residency.hold(name):
                for one in made:
                    if one.kind == kind:
                        units[unit].prepare(one)

    def forward(self, states: Sequence[CellState], then: Sequence[str] | None = None) -> list[CellState]:
        """One pass over the units, each serving every state in the given order.

        Cells that share a pass must not depend on one another (see `sampling.lattice`). The velocity of a cell is in
        `output` afterwards; a sink prefill leaves its keys and values in the sink cache. `then` as in
        `Residency.begin`.
        """
        units = self.units()
        needed = [name for name, unit in units.items() if any(unit.serves(s) for s in states)]
        self.residency.begin(needed, then)
        for state in states:
            state.share = self.spread.share(state.tokens)
        passed = list(states)
        for name in needed:
            unit = units[name]
            with self.residency.hold(name):
                passed = [unit(state) if unit.serves(state) else state for state in passed]
        return passed
