"""The one rollout loop: a generator of finished blocks over rounds of cells.

Where weights rest, which rank does what and in which order cells are visited is decided elsewhere; the loop only walks
the rounds it is given. Memory does not grow with the length of the stream.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from liveavatar.models.dit.cache import SinkView, StreamCaches, StreamView
from liveavatar.models.dit.context import Grid, reference_place
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.dit.state import CellInput, CellState, SinkInput
from liveavatar.sampling.conditioning import Conditioning, RolloutSettings, SinkPlan
from liveavatar.sampling.lattice import Cell, Round, sequential
from liveavatar.sampling.noise import DistanceSource, NoiseSource
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.types import BLOCK_LATENTS


@dataclass(frozen=True)
class Block:
    """A finished block: its number and its clean latents."""

    index: int
    latents: Float[Tensor, "1 16 f h w"]


class Rollout:
    """One stream through the DiT: owns the caches, shares the weights.

    Two rollouts may share one `dit`. `first_block` starts the stream's count elsewhere than at 0: positions are those
    of that block, the caches are empty.
    """

    def __init__(
        self,
        dit: AvatarDiT,
        conditioning: Conditioning,
        sampler: EulerSampler,
        settings: RolloutSettings,
        noise: NoiseSource,
        distance: DistanceSource,
        first_block: int = 0,
    ) -> None:
        self.dit, self.conditioning, self.sampler, self.settings = dit, conditioning, sampler, settings
        self.noise, self.distance, self.first_block = noise, distance, first_block
        reference = conditioning.reference
        self.grid = Grid(reference.shape[-2], reference.shape[-1])
        shape = dit.cache_shape(self.grid, settings.cache_frames)
        like = torch.empty(0, dtype=dit.dtype, device=reference.device)
        self.caches = StreamCaches(shape, sampler.steps, like, origin=first_block * BLOCK_LATENTS)
        self._motion_turns = self.grid.motion_turns(dit.head_dim).to(reference.device)

    def blocks(self, count: int | None, sink: SinkPlan) -> Iterator[Block]:
        """Denoise `count` blocks one after another (None: for ever), each yielded as soon as it is finished."""
        yield from self.walk(sequential(self.first_block, count, self.sampler.steps), sink)

    @torch.no_grad()
    def walk(self, rounds: Iterable[Round], sink: SinkPlan) -> Iterator[Block]:
        """Visit the rounds; yield each block after its last step."""
        flying: dict[int, Tensor] = {}
        for cells in rounds:
            for block in (cell.block for cell in cells if cell.step == 0):
                self._prefill(sink.due(block))
                flying[block] = self._noise(block)
            states = self.dit([self._state(cell, flying[cell.block]) for cell in cells])
            for cell, state in zip(cells, states, strict=True):
                assert state.output is not None
                flying[cell.block] = self.sampler.step(flying[cell.block], state.output, cell.step)
                if cell.step == self.sampler.steps - 1:
                    latents = flying.pop(cell.block)
                    sink.observe(cell.block, latents)
                    yield Block(cell.block, latents)

    def _noise(self, block: int) -> Tensor:
        like = self.conditioning.reference
        drawn = self.noise.block(block, (1, self.dit.in_dim, BLOCK_LATENTS, *like.shape[-2:]))
        return drawn.to(device=like.device, dtype=self.dit.dtype)

    def _prefill(self, due: tuple[Tensor, Tensor] | None) -> None:
        """Fill the sink where a new one is due: one pass at timestep 0, shared by all steps."""
        if due is None:
            return
        turns = torch.cat((self._reference_turns(0, 0), self._motion_turns))
        inputs = SinkInput(*due, text=self.conditioning.text)
        self.dit([CellState(inputs, SinkView(self.caches.sink, turns))])

    def _state(self, cell: Cell, latents: Tensor) -> CellState:
        given, frame = self.conditioning, cell.block * BLOCK_LATENTS
        turns = self.grid.noisy_turns(frame, BLOCK_LATENTS, self.dit.head_dim).to(latents.device)
        sink_turns = self._reference_turns(frame, self.distance(cell.block, cell.step))
        view = StreamView(
            ring=self.caches.rings[cell.step],
            sink=self.caches.sink,
            scratch=self.caches.scratch,
            frame=frame,
            frames=BLOCK_LATENTS,
            turns=turns,
            sink_turns=torch.cat((sink_turns, self._motion_turns)),
            window=self.settings.local_frames,
        )
        inputs = CellInput(
            latents=latents,
            timestep=float(self.sampler.timesteps[cell.step]),
            pose=given.pose.block(cell.block),
            audio=given.audio.block(cell.block).to(latents.device),
            text=given.text,
            masks=None if given.masks is None else given.masks.block(cell.block),
        )
        return CellState(inputs, view)

    def _reference_turns(self, frame: int, distance: int) -> Tensor:
        place = reference_place(frame, distance)
        turns = self.grid.reference_turns(place, self.dit.head_dim)
        return turns.to(self.conditioning.reference.device)
