"""The ring of slots: what is on its way when, what a pass may do, what is left when nothing is held."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from liveavatar.checkpoint.read import RandomWeights
from liveavatar.checkpoint.slab import SlabLayout, allocate, vacate
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.strategies.ring import SlabRing
from tests.scene import cell_state, conditioning, draw, latents_of, make_dit, make_rollout, meta_dit, sink_state

CPU = torch.device("cpu")


class Transport:
    """Brings slabs only when they are waited for: whoever forgets to wait computes with what lay there before."""

    def __init__(self, model: AvatarDiT) -> None:
        self.layouts = {name: SlabLayout.of(unit, torch.float32) for name, unit in model.units().items()}
        self.slabs: dict[str, Tensor] = {}
        for name, layout in self.layouts.items():
            self.slabs[name] = allocate(layout.nbytes, CPU)
            layout.fill(self.slabs[name], RandomWeights(0), name)
        self.fetched: list[str] = []
        self.under_way: dict[int, str] = {}
        self.most_under_way = 0

    def __call__(self, name: str, slot: Tensor) -> Callable[[], None]:
        assert slot.nbytes == self.layouts[name].nbytes
        assert slot.data_ptr() not in self.under_way
        self.under_way[slot.data_ptr()] = name
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        self.fetched.append(name)
        slot.fill_(255)  # a NaN in every float, until the slab arrives

        def arrive() -> None:
            slot.copy_(self.slabs[name])
            del self.under_way[slot.data_ptr()]

        return arrive


def streamed(slots: int) -> tuple[AvatarDiT, SlabRing, Transport]:
    model = meta_dit()
    model.hoist = False  # units move as a whole here; see test_hoist.py for their parts
    transport = Transport(model)
    for unit in model.units().values():
        vacate(unit, torch.float32, CPU)
    ring = SlabRing(model.units(), transport.layouts, transport, slots, CPU)
    model.residency = ring
    return model, ring, transport


def one_pass(ring: SlabRing, names: list[str]) -> None:
    ring.begin(names)
    for name in names:
        with ring.hold(name):
            pass


@pytest.mark.parametrize("slots", [2, 3, 5, 12])
def test_numbers_are_those_of_resident_weights(slots: int) -> None:
    model, _, transport = streamed(slots)
    found = latents_of(make_rollout(model, conditioning(), steps=2), 6)
    assert torch.equal(found, latents_of(make_rollout(make_dit(), conditioning(), steps=2), 6))
    assert transport.most_under_way == min(slots, len(model.units()))


@pytest.mark.parametrize("slots", [2, 3, 5])
def test_bytes_are_slots_times_the_largest_unit_and_every_view_lies_in_them(slots: int) -> None:
    model, ring, transport = streamed(slots)
    largest = max(layout.nbytes for layout in transport.layouts.values())
    assert ring.nbytes == slots * largest
    names = list(model.units())
    for _ in range(4):
        ring.begin(names)
        for name in names:
            with ring.hold(name):
                unit, rooms = ring.units[name], [slot.room for slot in ring.slots]
                starts = {p.data_ptr() for p in unit.parameters()}
                room = next(room for room in rooms if room.data_ptr() in starts)
                assert all(room.data_ptr() <= start < room.data_ptr() + room.nbytes for start in starts)
                assert all(start % 256 == 0 for start in starts)
                others = [p for other, module in ring.units.items() if other != name for p in module.parameters()]
                assert sum(p.numel() for p in others) == 0
        assert sum(p.numel() for p in model.parameters()) == 0
    assert transport.fetched[: 4 * len(names)] == names * 4  # each once a pass, in order


def test_the_next_pass_is_already_on_its_way_when_one_ends() -> None:
    model, ring, transport = streamed(3)
    names = list(model.units())
    one_pass(ring, names)
    assert transport.fetched[len(names) :] == names[:2]
    assert ring.discarded == 0


@torch.no_grad()
def test_weights_that_were_let_go_cannot_be_used() -> None:
    model, _, _ = streamed(2)
    rollout = make_rollout(model, conditioning())
    state = sink_state(rollout)
    model([state])
    with pytest.raises(RuntimeError):
        model.blocks[0](state)
    with pytest.raises(RuntimeError):
        model.head.head(draw(0, 3, 32))


def test_units_out_of_turn_are_refused() -> None:
    model, ring, _ = streamed(2)
    names = list(model.units())
    with pytest.raises(RuntimeError, match="'embed' was entered out of turn: no pass announced it"):
        ring.hold("embed").__enter__()
    ring.begin(names)
    with pytest.raises(RuntimeError, match=r"'blocks\.0' was entered out of turn: the pass announced 'embed'"):
        ring.hold("blocks.0").__enter__()
    one_pass(ring, names)
    with pytest.raises(RuntimeError, match="no pass announced it"):
        ring.hold("embed").__enter__()


def test_another_kind_of_pass_discards_what_it_does_not_need() -> None:
    _, ring, transport = streamed(3)
    one_pass(ring, ["embed", "blocks.0", "head"])  # leaves embed and blocks.0 on their way
    before = len(transport.fetched)
    one_pass(ring, ["embed", "blocks.1", "blocks.2"])
    assert ring.discarded == 1
    assert transport.fetched[before : before + 2] == ["blocks.1", "blocks.2"]  # embed was kept
    one_pass(ring, ["head"])
    assert ring.discarded == 3


@pytest.mark.parametrize("names", [["head"], ["embed", "head"], ["embed", "blocks.0", "head"]])
def test_a_pass_may_be_shorter_than_the_ring(names: list[str]) -> None:
    _, ring, transport = streamed(5)
    for _ in range(3):
        ring.begin(names)
        for name in names:
            with ring.hold(name):
                held = next(ring.units[name].parameters())
                expected = next(iter(transport.layouts[name].views(transport.slabs[name]).values()))
                assert torch.equal(held, expected)
    assert len(transport.fetched) <= 3 * len(names) + 5
    assert ring.discarded == 0


@torch.no_grad()
def test_a_pass_that_breaks_off_spoils_nothing() -> None:
    model, _, _ = streamed(3)
    truth, outputs = make_dit(), []
    for dit in (model, truth):
        rollout = make_rollout(dit, conditioning())
        if dit is model:
            hook = dit.blocks[1].register_forward_pre_hook(_break)
            with pytest.raises(KeyboardInterrupt):
                dit([sink_state(rollout)])
            hook.remove()
            assert sum(p.numel() for p in dit.parameters()) == 0
        dit([sink_state(rollout)])
        outputs.append(dit([cell_state(rollout, 0, 0, draw(0, 1, 16, 3, 16, 8))])[0].output)
    assert torch.equal(*outputs)


def _break(module: torch.nn.Module, given: object) -> None:
    raise KeyboardInterrupt


def test_closing_waits_for_what_is_under_way() -> None:
    model, ring, transport = streamed(4)
    ring.begin(list(model.units()))
    assert len(transport.under_way) == 4
    ring.close()
    assert transport.under_way == {}
    assert all(slot.unit is None for slot in ring.slots)
    ring.close()


def test_slots_are_reused_without_new_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ring, _ = streamed(2)
    rooms = [slot.room.data_ptr() for slot in ring.slots]
    monkeypatch.setattr("liveavatar.strategies.ring.allocate", _no_more)
    names = list(model.units())
    for _ in range(2):
        one_pass(ring, names)
    views = {key: {name: id(view) for name, view in made.items()} for key, made in ring._views.items()}
    for _ in range(4):
        one_pass(ring, names)
    assert [slot.room.data_ptr() for slot in ring.slots] == rooms
    for key, made in ring._views.items():
        assert {name: id(view) for name, view in made.items()} == views[key]


def _no_more(*given: object, **named: object) -> Tensor:
    raise AssertionError("the ring made room after it was built")
