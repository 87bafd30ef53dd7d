"""AvatarDiT: the whole as the fold of its units.

Notable: the model never learns where its weights rest. Before a pass it announces the units of the pass to `residency`,
and enters each unit through it; a strategy may bring the weights in and let them go. A unit serves all states of a pass
before the next unit is entered, so that one arrival of its weights can serve several cells.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from liveavatar.models.dit.audio import STREAMS, AdaIn, AudioEncoder, Injector
from liveavatar.models.dit.block import Block
from liveavatar.models.dit.cache import CacheShape
from liveavatar.models.dit.context import FramePacker, Grid, tokens
from liveavatar.models.dit.state import CellInput, CellState, SinkInput, Unit, parameters_dtype
from liveavatar.ops.embed import linear_float32, modulate, plain_norm, sinusoid, unpatchify


@runtime_checkable
class Residency(Protocol):
    """Where units' weights are: `begin` names the units of the coming pass in order, `hold` lends one of them."""

    def begin(self, names: Sequence[str]) -> None: ...

    def hold(self, name: str) -> AbstractContextManager[object]: ...


class Resident:
    """Weights that are simply there."""

    def begin(self, names: Sequence[str]) -> None:
        pass

    def hold(self, name: str) -> AbstractContextManager[object]:
        return nullcontext()


class Embed(Unit):
    """Inputs to tokens: patches, pose, reference and motion; timestep, text and voice to what the blocks need."""

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
        store = self.patch_embedding.weight.dtype
        if isinstance(inputs, SinkInput):
            state.x, timestep = self._condition_tokens(inputs), 0.0
        else:
            state.x, timestep = self._noisy_tokens(inputs), inputs.timestep
            state.voice, state.tone = self.audio_encoder(inputs.audio, inputs.latents.shape[2])
        time, projected = self.embed_time(torch.tensor([timestep], dtype=torch.float32, device=state.x.device))
        batch = state.x.shape[0]
        state.time, state.modulation = time.expand(batch, 1, -1), projected.expand(batch, 1, -1, -1)
        missing = self.text_len - inputs.text.shape[1]
        state.text = self.text_embedding(F.pad(inputs.text.to(store), (0, 0, 0, missing)))
        return state

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

    def forward(self, state: CellState) -> CellState:
        assert state.time is not None
        _, _, frames, h, w = state.cell.latents.shape
        picture = unpatchify(self.values(state.hidden, state.time), frames, h // 2, w // 2)
        state.output = picture.to(state.cell.latents.dtype)
        return state


class AvatarDiT(nn.Module):
    """The causal speech-to-video transformer of Wan2.2-S2V with LiveAvatar's per-step caches.

    Keywords carry the names of the published `config.json`. Weights may be built on `meta`; a strategy brings them to
    life. Raises ValueError for sizes that cannot work.
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
        self.in_dim = in_dim
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
        self.adain = nn.ModuleList(AdaIn(dim) for _ in audio_inject_layers)
        self.injectors = nn.ModuleList(Injector(dim, num_heads, eps) for _ in audio_inject_layers)
        self.head = Head(dim, out_dim, eps)
        self.residency: Residency = Resident()
        self.stage = range(num_layers)

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

    def cache_shape(self, grid: Grid, frames: int = 12) -> CacheShape:
        """Sizes of the caches of one stream on that grid; `frames` is the window in latent frames."""
        return CacheShape(
            layers=len(self.stage),
            heads=self.num_heads,
            channels=self.head_dim,
            frame_tokens=grid.frame_tokens,
            sink_tokens=grid.sink_tokens,
            frames=frames,
            first_layer=self.stage.start,
        )

    def forward(self, states: Sequence[CellState]) -> list[CellState]:
        """One pass over the units, each serving every state in the given order.

        Cells that share a pass must not depend on one another (see `sampling.lattice`). The velocity of a cell is in
        `output` afterwards; a sink prefill leaves its keys and values in the sink cache.
        """
        units = self.units()
        needed = [name for name, unit in units.items() if any(unit.serves(s) for s in states)]
        self.residency.begin(needed)
        passed = list(states)
        for name in needed:
            unit = units[name]
            with self.residency.hold(name):
                passed = [unit(state) if unit.serves(state) else state for state in passed]
        return passed
