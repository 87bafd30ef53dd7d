"""The one rollout loop: a generator of finished blocks over rounds of cells.

Where weights rest, which rank does what and in which order cells are visited is decided elsewhere; the loop only walks
the rounds it is given. Memory does not grow with the length of the stream.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from liveavatar.models.dit.cache import CacheShape, SinkCache, SinkView, StreamCaches, StreamView
from liveavatar.models.dit.context import Grid, reference_place
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.dit.state import CellInput, CellState, SinkInput
from liveavatar.sampling.conditioning import Conditioning, RolloutSettings, SinkPlan
from liveavatar.sampling.hoist import Hoist
from liveavatar.sampling.lattice import Cell, Round, with_next
from liveavatar.sampling.noise import DistanceSource, NoiseSource
from liveavatar.sampling.relay import Course, LocalRelay, Relay, Wire
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.types import BLOCK_LATENTS

CacheMaker = Callable[[CacheShape, range, Tensor, int], StreamCaches]
"""Makes the caches of a stream from their sizes, the steps taken here, dtype and device, and the first frame."""


@dataclass(frozen=True)
class Block:
    """A finished block: its number and its clean latents."""

    index: int
    latents: Float[Tensor, "1 16 f h w"]


@dataclass
class _Flight:
    """A block on its way: its latents at the level reached, and what it is conditioned on throughout."""

    latents: Tensor
    text: Tensor
    sink: SinkCache
    pose: Tensor
    audio: Tensor
    masks: Tensor | None


class Rollout:
    """One stream through the DiT: owns the caches, shares the weights.

    Two rollouts may share one `dit`. `first_block` starts the stream's count elsewhere than at 0: positions are those
    of that block, the caches are empty. `relay` says which cells are this rank's, in which order, and where they come
    from; without one, all cells are here, one after another. `caches` makes the caches, where they do not all
    rest on the device. Where the model hoists, `hoisted` holds the conditioning that was made ready ahead of the cells.
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
        relay: Relay | None = None,
        caches: CacheMaker | None = None,
    ) -> None:
        self.dit, self.conditioning, self.sampler, self.settings = dit, conditioning, sampler, settings
        self.noise, self.distance, self.first_block = noise, distance, first_block
        self.relay = relay or LocalRelay(sampler.steps)
        reference = conditioning.reference
        self.grid = Grid(reference.shape[-2], reference.shape[-1])
        shape = dit.cache_shape(self.grid, settings.cache_frames)
        like = torch.empty(0, dtype=dit.dtype, device=reference.device)
        self.caches = (caches or StreamCaches)(shape, self.relay.steps, like, first_block * BLOCK_LATENTS)
        self._motion_turns = self.grid.motion_turns(dit.head_dim).to(reference.device)
        timesteps = [float(sampler.timesteps[step]) for step in self.relay.steps]
        self.hoisted = Hoist(dit, timesteps, partial(_features, conditioning)) if dit.hoist else None
        self._prompts = [(first_block, conditioning.text)]  # from which block on
        self._upcoming = first_block
        self._wired: Wire | None = None

    def blocks(self, count: int | None, sink: SinkPlan, first: int | None = None) -> Iterator[Block]:
        """Denoise `count` blocks (None: for ever); each is yielded as soon as it is finished, in order.

        Blocks come out on the rank on which they are finished and on the one that decodes, nowhere else. A stream may
        be taken stretch by stretch: `first` goes on where the calls before it have ended, on all ranks alike, and
        between two stretches nothing is under way. How a stream is cut into stretches changes no bit.
        """
        start = self.first_block if first is None else first
        begins = start == self.first_block
        self._wired = self._wired or self._wire()
        self.relay.open(self._wired, Course(start, count, sink.refresh, begins))
        if self.hoisted:
            self.hoisted.end = None if count is None else start + count
        try:
            yield from (Block(index, latents) for index, latents in self.relay.finished())
            yield from self.walk(self.relay.rounds(), sink, start)
            if begins and self.relay.computes and sink.lacks(None if count is None else start + count):
                self._share(sink)
        finally:
            self.relay.close()

    def _share(self, sink: SinkPlan) -> None:
        """Take note of the first block where another rank has finished it."""
        shared = self.relay.shared()
        if shared is not None:
            sink.observe(self.first_block, shared)

    def change_prompt(self, text: Float[Tensor, "1 words text_dim"], block: int | None = None) -> int:
        """Let the blocks from `block` on (None: the next to be taken up) read another prompt; returns that block.

        Blocks under way keep theirs, so that every schedule gives the same numbers for the same `block`. The sink keeps
        the prompt that it was prefilled with. Raises ValueError for a block that was taken up already, and where other
        ranks have part of the layers: the prompt reaches them with the sink.
        """
        at = self._upcoming if block is None else block
        if at < self._upcoming:
            raise ValueError(f"block {at} cannot take another prompt: the first one not taken up is {self._upcoming}")
        self.check_prompt_may_change()
        self._prompts = [entry for entry in self._prompts if entry[0] < at] + [(at, text)]
        return at

    def check_prompt_may_change(self) -> None:
        """Raises ValueError where other ranks have part of the layers: they are given the prompt with the sink."""
        if 0 < len(self.dit.stage) < self.dit.num_layers:
            raise ValueError(
                "the prompt of a stream cannot change where its layers are divided among ranks: "
                "use another strategy, or begin a new stream"
            )

    @property
    def hoisted_bytes(self) -> int:
        """Bytes of the conditioning that was made ready ahead of the cells."""
        return sum(tensor.nbytes for tensor in self.hoisted.tensors) if self.hoisted else 0

    @torch.no_grad()
    def walk(self, rounds: Iterable[Round], sink: SinkPlan, start: int | None = None) -> Iterator[Block]:
        """Visit the rounds that fall to this rank; yield each block that is finished here."""
        flights: dict[int, _Flight] = {}
        self._upcoming = self.first_block if start is None else start
        if self.hoisted:
            self.hoisted.clear()
        for cells, after_these in with_next(rounds):
            try:
                yield from self._visit(cells, after_these, sink, flights)
            except Exception as error:
                error.add_note(" and ".join(f"block {cell.block}, step {cell.step}" for cell in cells))
                raise

    def _visit(
        self, cells: Round, after_these: Round | None, sink: SinkPlan, flights: dict[int, _Flight]
    ) -> Iterator[Block]:
        """One round: one pass of its cells over the units."""
        relay, final = self.relay, self.sampler.steps - 1
        taken = [self._taken_up(cell, sink, flights) for cell in cells]
        if self.hoisted:
            texts = [flight.text for flight in flights.values()]
            self.hoisted.equip([(cell.block, own) for cell, own in zip(cells, taken, strict=True)], texts)
        views = [states[-1].cache for states in taken]
        self.caches.scratch.begin([view for view in views if isinstance(view, StreamView)], self.dit.stage)
        then = self._begins(after_these, flights)
        passed = iter(self.dit([state for states in taken for state in states], then))
        for cell, states in zip(cells, taken, strict=True):
            after = [next(passed) for _ in states]
            relay.send(cell, after)
            flight, state = flights[cell.block], after[-1]
            if relay.finishes(cell.step):
                assert state.output is not None
                flight.latents = self.sampler.step(flight.latents, state.output, cell.step)
                relay.outgoing(cell, flight.latents)
            if cell.step == relay.steps[-1]:
                del flights[cell.block]
                if self.hoisted:
                    self.hoisted.let_go(cell.block)
            if cell.step == final and relay.finishes(final):
                sink.observe(cell.block, flight.latents)
                yield Block(cell.block, flight.latents)

    def _taken_up(self, cell: Cell, sink: SinkPlan, flights: dict[int, _Flight]) -> list[CellState]:
        """The states of a cell: its own and, on the first step of a block with a new sink, ahead of it a prefill."""
        arrived = self.relay.incoming(cell)
        states = [] if cell.block in flights else self._enter(cell.block, sink, flights)
        flight = flights[cell.block]
        if arrived is not None:
            flight.latents = arrived
        states.append(self._state(cell, flight))
        self.relay.receive(cell, states)
        return states

    def _begins(self, cells: Round | None, flights: dict[int, _Flight]) -> list[str]:
        """The units that the coming round begins with; none after the last."""
        if cells is None:
            return []
        if self.hoisted is None:
            return list(self.dit.units())
        under_way = {cell.block: flights.get(cell.block) for cell in cells}
        texts = {block: flight.text if flight else self._prompt(block) for block, flight in under_way.items()}
        return self.hoisted.coming(texts)

    def _prompt(self, block: int) -> Tensor:
        """The prompt of a block that is yet to be taken up."""
        return next(text for start, text in reversed(self._prompts) if start <= block)

    def _enter(self, block: int, sink: SinkPlan, flights: dict[int, _Flight]) -> list[CellState]:
        """Take a block up on this rank.

        Blocks already in flight keep the sink they began with: a new one gets a buffer of its own, and the old one
        goes with the last block that holds it, so that nothing has to drain.
        """
        if block == sink.refresh and block != self.first_block and sink.lacks():
            self._share(sink)
        given, due = self.conditioning, sink.due(block)
        if due is not None and flights:
            self.caches.sink = self.caches.sink.another()
        text, self._upcoming = self._prompt(block), max(self._upcoming, block + 1)
        self._prompts = [entry for entry in self._prompts if entry[0] > block or entry[1] is text]
        flights[block] = _Flight(
            latents=self._noise(block),
            text=text,
            sink=self.caches.sink,
            pose=given.pose.block(block),
            audio=self.hoisted.audio_of(block) if self.hoisted else _features(given, block),
            masks=None if given.masks is None else given.masks.block(block),
        )
        if due is None:
            return []
        turns = torch.cat((self._reference_turns(0, 0), self._motion_turns))
        return [CellState(SinkInput(*due, text=text), SinkView(self.caches.sink, turns))]

    def _wire(self) -> Wire:
        given = self.conditioning
        latents = (1, self.dit.in_dim, BLOCK_LATENTS, *given.reference.shape[-2:])
        actors = given.audio.block(self.first_block).shape[0]
        shape = self.caches.shape
        return Wire(
            latents=latents,
            tokens=BLOCK_LATENTS * shape.frame_tokens,
            sink_tokens=shape.sink_tokens,
            frames=BLOCK_LATENTS,
            dim=self.dit.dim,
            words=self.dit.text_len,
            actors=actors,
            dtype=self.dit.dtype,
            device=given.reference.device,
        )

    def _noise(self, block: int) -> Tensor:
        like = self.conditioning.reference
        drawn = self.noise.block(block, (1, self.dit.in_dim, BLOCK_LATENTS, *like.shape[-2:]))
        return drawn.to(device=like.device, dtype=self.dit.dtype)

    def _state(self, cell: Cell, flight: _Flight) -> CellState:
        frame, device = cell.block * BLOCK_LATENTS, flight.latents.device
        sink_turns = self._reference_turns(frame, self.distance(cell.block, cell.step))
        view = StreamView(
            ring=self.caches.ring(cell.step),
            sink=flight.sink,
            scratch=self.caches.scratch,
            frame=frame,
            frames=BLOCK_LATENTS,
            turns=self.grid.noisy_turns(frame, BLOCK_LATENTS, self.dit.head_dim).to(device),
            sink_turns=torch.cat((sink_turns, self._motion_turns)),
            window=self.settings.local_frames,
        )
        inputs = CellInput(
            latents=flight.latents,
            timestep=float(self.sampler.timesteps[cell.step]),
            pose=flight.pose,
            audio=flight.audio,
            text=flight.text,
            masks=flight.masks,
        )
        return CellState(inputs, view)

    def _reference_turns(self, frame: int, distance: int) -> Tensor:
        place = reference_place(frame, distance)
        turns = self.grid.reference_turns(place, self.dit.head_dim)
        return turns.to(self.conditioning.reference.device)


def _features(given: Conditioning, block: int) -> Tensor:
    """A block's speech features, on the device."""
    return given.audio.block(block).to(given.reference.device)
