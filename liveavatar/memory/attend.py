"""Watching a run without a part in it: at the boundaries of passes, units and pieces of video, and nowhere between.

Units are seen through the seam at which residency is decided, so whatever a strategy does to bring a unit in counts as
that unit's. Where a run is, is noted on entering and cleared on leaving: after a failure it still says where.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanDecoder3d
from torch import Tensor, nn

from liveavatar.memory.profiler import MemoryProfiler
from liveavatar.models.dit.cache import StreamView
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.dit.residency import Residency
from liveavatar.models.dit.state import CellState
from liveavatar.types import BLOCK_LATENTS

READ_EVERY = 32
"""Tensors from one reading to the next while weights are read."""


class WatchedSource:
    """A source of tensors whose reader is watched: says which unit is being loaded."""

    def __init__(self, source: Any, profiler: MemoryProfiler) -> None:
        self._source, self._profiler, self._count = source, profiler, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    @property
    def origin(self) -> str:
        return self._source.origin

    def read(self, name: str, shape: torch.Size) -> Tensor:
        self._note(name)
        return self._source.read(name, shape)

    def read_rows(self, name: str, shape: torch.Size, start: int, stop: int) -> Tensor:
        self._note(name)
        partial = getattr(self._source, "read_rows", None)
        return self._source.read(name, shape)[start:stop] if partial is None else partial(name, shape, start, stop)

    def _note(self, name: str) -> None:
        first, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        at, unit = self._profiler.where, f"{first}.{number}" if number.isdigit() else first
        if at.phase == "encode" and at.unit not in ("", unit):  # a lent encoder comes after another
            self._profiler.read(at.unit)
        at.unit = unit
        self._count += 1
        if self._count % READ_EVERY == 0:
            self._profiler.read()


@contextmanager
def encoding(profiler: MemoryProfiler, encoders: Mapping[str, nn.Module]) -> Iterator[None]:
    """The phase `encode`, each encoder told apart by its calls; one that is only lent is counted while it is there.

    A decoder that is warmed up before the first block begins the phase `decode`.
    """
    called_once: set[str] = set()

    def hook(name: str, part: nn.Module) -> Any:
        decodes = isinstance(part, WanDecoder3d)

        def called(module: nn.Module, args: Any) -> None:
            if decodes:
                profiler.enter("decode")
            at = profiler.where
            if at.unit != name:
                if at.unit:
                    profiler.read(at.unit)
                at.unit = name
            if name not in called_once:
                called_once.add(name)
                profiler.ledger.refresh()

        return called

    with ExitStack() as stack:
        for name, module in encoders.items():
            for part in _two_levels(module):
                stack.callback(part.register_forward_pre_hook(hook(name, part)).remove)
        stack.enter_context(profiler.phase("encode"))
        yield


def _two_levels(module: nn.Module) -> list[nn.Module]:
    children = list(module.children())
    return [*children, *(part for child in children for part in child.children())]


class _Passes(Residency):
    """Stands before a model's residency and notes each unit that is entered."""

    def __init__(self, profiler: MemoryProfiler, dit: AvatarDiT, caches: Any) -> None:
        self.profiler, self.dit, self.inner = profiler, dit, dit.residency
        self.steps = {id(caches.ring(step)): step for step in caches.steps}
        self.probe = ExitStack()
        self._passes = 0
        self._seen: dict[str, int] = {}
        self._by_unit = False

    def before(self, module: nn.Module, args: tuple[Sequence[CellState]]) -> None:
        states, watch = args[0], self.profiler
        kind = "prefill" if any(state.is_sink for state in states) else "steady"
        watch.enter(kind)
        watch.where.cells = tuple(self._cells(states))
        fresh = len(states) > self._seen.get(kind, 0)
        self._seen[kind] = max(len(states), self._seen.get(kind, 0))
        self._by_unit = watch.settings.memory and (fresh or self._passes % watch.settings.every == 0)
        self._passes += 1
        if fresh:
            self.probe.enter_context(watch.probing(kind, len(states)))

    def after(self, module: nn.Module, args: Any, passed: Any) -> None:
        self.profiler.read()
        self.probe.close()

    def begin(self, names: Sequence[str], then: Sequence[str] | None = None) -> None:
        self.inner.begin(names, then)

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        self.profiler.where.unit = name
        with self.inner.hold(name):
            yield
            if self._by_unit:
                self.profiler.read(name)
        self.profiler.where.unit = ""

    def _cells(self, states: Iterable[CellState]) -> Iterator[tuple[int, int]]:
        for state in states:
            view = state.cache
            if isinstance(view, StreamView):
                yield view.frame // BLOCK_LATENTS, self.steps.get(id(view.ring), 0)


class _Decoding:
    """Stands before a stream's decoder (`sampling.decoding.Decoding`)."""

    def __init__(self, profiler: MemoryProfiler, decoding: Any) -> None:
        self.profiler, self.inner = profiler, decoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def push(self, index: int, latents: Tensor) -> Iterator[Any]:
        yield from self._watched(((index, None),), lambda: list(self.inner.push(index, latents)))

    def flush(self) -> Iterator[Any]:
        yield from self._watched((), lambda: list(self.inner.flush()))

    def _watched(self, cells: Any, work: Any) -> list[Any]:
        watch = self.profiler
        watch.enter("decode")
        watch.where.cells, watch.where.unit = cells, "vae"
        with watch.probing("decode"):
            pieces = work()
            watch.read("vae decode")
        watch.where.unit = ""
        watch.ledger.refresh()
        return pieces

    def held(self) -> dict[str, tuple[int, int]]:
        state = getattr(self.inner, "state", None)
        if state is not None:
            return {"decoder": (state.nbytes(), 0)}
        parts = (getattr(self.inner, name, None) for name in ("motion", "window"))
        return {"decoder": (sum(part.nbytes for part in parts if part is not None), 0)}


@contextmanager
def attending(profiler: MemoryProfiler, dit: AvatarDiT, stream: Any) -> Iterator[None]:
    """Watch a model and the caches and decoder of one `session.Stream` while its chunks are made.

    After a failure the ledger keeps what they held: it is about to be told.
    """
    caches = stream.rollout.caches
    profiler.enter("prefill")
    passes = _Passes(profiler, dit, caches)
    with ExitStack() as stack:
        stack.callback(setattr, dit, "residency", dit.residency)
        dit.residency = passes
        stack.callback(passes.probe.close)
        stack.callback(dit.register_forward_pre_hook(passes.before).remove)
        stack.callback(dit.register_forward_hook(passes.after).remove)
        reports = [caches.held, lambda: {"hoisted": (stream.rollout.hoisted_bytes, 0)}]
        if stream.decoding is not None:
            stack.callback(setattr, stream, "decoding", stream.decoding)
            stream.decoding = _Decoding(profiler, stream.decoding)
            reports.append(stream.decoding.held)
        for report in reports:
            profiler.ledger.add(report)
        yield
    profiler.end()
    for report in reports:
        profiler.ledger.drop(report)
