"""A whole clip through the DiT in one pass: what training computes, equal to the rollout through the caches.

Every block of the clip is a cell of the pass, with its own noise level; units serve the cells in order, so at each
layer a block finds the keys and values of the blocks before it, of this very pass, where the rollout finds them in its
ring. When all blocks have the noise level of one step the pass gives that step's numbers of a rollout (same-step
caches; semantics, 5.2); with a level of its own for each block it is diffusion forcing (arXiv:2407.01392).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import register_pytree_node
from torch.utils.checkpoint import checkpoint

from liveavatar.models.dit.context import Grid, reference_place
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.dit.state import CellInput, CellState, SinkInput, Unit
from liveavatar.ops.rope import rotate
from liveavatar.types import BLOCK_LATENTS


@dataclass(frozen=True)
class ClipSink:
    """A sink of the clip: reference and motion latents, which blocks refer to by its place in the list."""

    reference: Float[Tensor, "b 16 1 h w"]
    motion: Float[Tensor, "b 16 m h w"]


@dataclass(frozen=True)
class ClipBlock:
    """A block of the clip: its number in the stream, its noisy latents and their level (0 to 1), what it hears.

    `distance` is how far the reference stands ahead of it, `sink` the place of its sink in the list of sinks.
    """

    index: int
    latents: Float[Tensor, "b 16 f h w"]
    sigma: float
    audio: Float[Tensor, "b L c t"]
    distance: int
    sink: int = 0


class Memory:
    """Keys and values of one layer, while the cells of a pass are served by it.

    No dataclass: FSDP2 takes those apart in search of tensors, and would give each cell a memory of its own.
    """

    def __init__(self) -> None:
        self.sinks: dict[int, tuple[Tensor, Tensor]] = {}
        self.blocks: dict[int, tuple[Tensor, Tensor]] = {}

    def clear(self) -> None:
        self.sinks.clear()
        self.blocks.clear()


@dataclass(frozen=True, eq=False)
class SinkEntry:
    """A prefill within a pass (a `CacheView`)."""

    memory: Memory
    number: int
    turns: Tensor

    def exchange(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.memory.sinks[self.number] = (k, v)
        return rotate(q, self.turns), rotate(k, self.turns), v


@dataclass(frozen=True, eq=False)
class BlockEntry:
    """A block within a pass (a `CacheView`): it sees its sink, itself and the blocks that a ring would still hold."""

    memory: Memory
    number: int
    sink: int
    turns: Tensor
    sink_turns: Tensor
    window: int

    def exchange(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.memory.blocks[self.number] = (rotate(k, self.turns), v)
        numbers = range(self.number - self.window + 1, self.number + 1)
        past = [self.memory.blocks[number] for number in numbers if number in self.memory.blocks]
        sink_k, sink_v = self.memory.sinks[self.sink]
        keys = torch.cat((rotate(sink_k, self.sink_turns), *(keys for keys, _ in past)), dim=1)
        values = torch.cat((sink_v, *(values for _, values in past)), dim=1)
        return rotate(q, self.turns), keys, values


@dataclass
class ClipState(CellState):
    """All cells of a clip, served by a unit in one call; what travels through the units in training.

    It has work for every unit; `inputs` and `cache` are those of its first cell.
    """

    states: list[CellState] = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)

    @classmethod
    def of(cls, states: list[CellState], memory: Memory) -> ClipState:
        return cls(states[0].inputs, states[0].cache, states=states, memory=memory)

    @property
    def is_sink(self) -> bool:
        return False


_TENSORS = ("x", "time", "modulation", "text", "voice", "tone", "query", "output")


def _flat_cell(state: CellState) -> tuple[list[Any], Any]:
    return [getattr(state, name) for name in _TENSORS], (state.inputs, state.cache)


def _whole_cell(tensors: Any, context: Any) -> CellState:
    return CellState(*context, **dict(zip(_TENSORS, tensors, strict=True)))


# sharded training looks for the tensors that enter and leave a unit, to hang its hooks on them
register_pytree_node(CellState, _flat_cell, _whole_cell)
register_pytree_node(
    ClipState,
    lambda clip: (clip.states, clip.memory),
    lambda states, memory: ClipState.of(list(states), memory),
)


def serve_clips(dit: AvatarDiT, checkpointing: bool = False) -> None:
    """Teach the units of a DiT to serve all cells of a `ClipState` in one call; other states pass as before.

    With `checkpointing` a unit keeps its inputs alone and is computed again on the way back.
    """
    for unit in dit.units().values():
        unit.forward = partial(_serve, unit, unit.forward, checkpointing)


def _serve(unit: Unit, forward: Any, checkpointing: bool, state: Any) -> Any:
    if not isinstance(state, ClipState):
        return forward(state)
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(_served, unit, forward, state, use_reentrant=False)
    return _served(unit, forward, state)


def _served(unit: Unit, forward: Any, clip: ClipState) -> ClipState:
    # units change the state they are given: a second computation must find it as the first did
    clip.memory.clear()
    states = [copy.copy(state) for state in clip.states]
    passed = [forward(state) if unit.serves(state) else state for state in states]
    return ClipState.of(passed, clip.memory)


def clip_velocities(
    dit: AvatarDiT,
    sinks: Sequence[ClipSink],
    blocks: Sequence[ClipBlock],
    text: Float[Tensor, "b words text_dim"],
    cache_frames: int = 12,
) -> list[Float[Tensor, "b 16 f h w"]]:
    """The velocity that the model predicts for each block of a clip, with gradients.

    Args:
        dit: prepared by `serve_clips`.
        sinks: what the stream looks at, in order of use.
        blocks: consecutive blocks of a stream; those before the first are empty, as in a stream that starts there.
        text: embeddings of the prompts, zero-padded to one length.
        cache_frames: latent frames that the ring holds at inference.
    """
    like = blocks[0].latents
    grid = Grid(like.shape[-2], like.shape[-1])
    motion_turns = grid.motion_turns(dit.head_dim)
    memory, pose = Memory(), torch.zeros_like(like)

    def sink_turns(frame: int, distance: int) -> Tensor:
        reference = grid.reference_turns(reference_place(frame, distance), dit.head_dim)
        return torch.cat((reference, motion_turns)).to(like.device)

    states = []
    for number, sink in enumerate(sinks):
        view = SinkEntry(memory, number, sink_turns(0, 0))
        states.append(CellState(SinkInput(sink.reference, sink.motion, text), view))
    for block in blocks:
        frame = block.index * BLOCK_LATENTS
        view = BlockEntry(
            memory,
            block.index,
            block.sink,
            grid.noisy_turns(frame, BLOCK_LATENTS, dit.head_dim).to(like.device),
            sink_turns(frame, block.distance),
            cache_frames // BLOCK_LATENTS,
        )
        states.append(CellState(CellInput(block.latents, 1000 * block.sigma, pose, block.audio, text), view))
    (passed,) = dit([ClipState.of(states, memory)])
    assert isinstance(passed, ClipState)
    return [state.output for state in passed.states[len(sinks) :] if state.output is not None]
