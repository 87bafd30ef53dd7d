"""The DiT as a list of units: their order, what belongs to them, which of them a pass needs, what they refuse."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.dit.state import CellInput, CellState, SinkInput
from tests.scene import cell_state, conditioning, draw, make_dit, make_rollout, meta_dit, sink_state

ORDER = ["embed", "blocks.0", "adain.0", "injectors.0", "blocks.1", "blocks.2", "adain.1", "injectors.1", "head"]


class Recorder:
    """A residency that only takes notes."""

    def __init__(self) -> None:
        self.passes: list[list[str]] = []
        self.held: list[list[str]] = []
        self.announced: list[list[str] | None] = []

    def begin(self, names: Sequence[str], then: Sequence[str] | None = None) -> None:
        self.passes.append(list(names))
        self.held.append([])
        self.announced.append(None if then is None else list(then))

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        self.held[-1].append(name)
        yield


def test_units_come_in_the_order_of_a_pass() -> None:
    model = meta_dit()
    assert list(model.units()) == ORDER
    assert all(model.get_submodule(name) is unit for name, unit in model.units().items())
    bare = meta_dit(audio_inject_layers=[])
    assert list(bare.units()) == ["embed", "blocks.0", "blocks.1", "blocks.2", "head"]


def test_every_parameter_belongs_to_exactly_one_unit() -> None:
    model = meta_dit()
    owned = [f"{unit}.{name}" for unit, module in model.units().items() for name, _ in module.named_parameters()]
    assert len(owned) == len(set(owned))
    assert set(owned) == {name for name, _ in model.named_parameters()}
    assert not list(model.named_buffers())  # nothing that a strategy would have to carry besides


@torch.no_grad()
def test_a_pass_announces_and_holds_what_it_needs_and_a_prefill_needs_less() -> None:
    model = make_dit()
    rollout = make_rollout(model, conditioning())
    model.residency = recorder = Recorder()
    model([sink_state(rollout)])
    model([cell_state(rollout, 0, 0, draw(0, 1, 16, 3, 16, 8))])
    model([sink_state(rollout), cell_state(rollout, 0, 0, draw(0, 1, 16, 3, 16, 8))])
    sink = [name for name in ORDER if not name.startswith(("adain", "injectors", "head"))]
    assert recorder.passes == [sink, ORDER, ORDER]
    assert recorder.held == recorder.passes


@torch.no_grad()
def test_a_prefill_may_ride_in_the_pass_of_the_first_cell() -> None:
    model = make_dit()
    outputs = []
    for together in (True, False):
        rollout = make_rollout(model, conditioning())
        states = [sink_state(rollout), cell_state(rollout, 0, 0, draw(0, 1, 16, 3, 16, 8))]
        passed = model(states) if together else [model([state])[0] for state in states]
        outputs.append(passed[1].output)
        assert passed[0].output is None
    assert torch.equal(*outputs)


def cells(model: AvatarDiT) -> tuple[list[CellState], list[CellState]]:
    """Twice the same two cells of different blocks and steps, each time over caches of their own."""
    both = []
    for _ in range(2):
        rollout = make_rollout(model, conditioning())
        model([sink_state(rollout)])
        both.append([cell_state(rollout, b, s, draw(b, 1, 16, 3, 16, 8)) for b, s in ((1, 0), (0, 2))])
    return both[0], both[1]


@torch.no_grad()
def test_one_pass_for_two_cells_equals_two_passes() -> None:
    model = make_dit()
    together, apart = cells(model)
    joint = model(together)
    single = [model([state])[0] for state in apart]
    for one, other in zip(joint, single, strict=True):
        assert torch.equal(one.output, other.output)
        assert one.output.shape == (1, 16, 3, 16, 8)
    assert not torch.equal(joint[0].output, joint[1].output)


@torch.no_grad()
def test_text_is_padded_before_it_is_embedded_and_all_of_it_attended() -> None:
    model = make_dit()
    _, (state, _) = cells(model)
    (passed,) = model([state])
    assert passed.text.shape == (1, 24, 32)
    empty = model.embed.text_embedding(torch.zeros(1, 1, 24))
    torch.testing.assert_close(passed.text[:, 7:], empty.expand(-1, 17, -1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 32, "num_heads": 3}, r"model\.dit\.num_heads=3"),
        ({"dim": 36, "num_heads": 4}, r"multiple of 8"),
        ({"dim": 30, "num_heads": 5}, r"model\.dit\.dim=30.*multiple of"),
        ({"audio_inject_layers": [0, 3]}, r"audio_inject_layers names \[3\].*0 to 2"),
        ({"audio_inject_layers": [-1]}, r"audio_inject_layers names \[-1\]"),
        ({"audio_inject_layers": [1, 1]}, r"audio_inject_layers"),
    ],
)
def test_sizes_that_cannot_work_name_their_key(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        meta_dit(**changes)


def test_units_out_of_order_and_sinks_in_voice_units_say_so() -> None:
    model = make_dit()
    sink = sink_state(make_rollout(model, conditioning()))
    with pytest.raises(RuntimeError, match=r"before `embed`"):
        _ = sink.hidden
    with pytest.raises(RuntimeError, match="no noisy tokens"):
        _ = sink.cell
    served = [name for name, unit in model.units().items() if unit.serves(sink)]
    assert served == ["embed", "blocks.0", "blocks.1", "blocks.2"]


def test_weights_are_linear_layers_and_convolutions_with_biases() -> None:
    """Semantics, 4: every q, k, v, o and feed-forward matrix has a bias."""
    linears = [m for m in meta_dit().modules() if isinstance(m, nn.Linear | nn.Conv3d | nn.Conv1d)]
    assert len(linears) > 50
    assert all(layer.bias is not None for layer in linears)


def test_inputs_are_frozen() -> None:
    with pytest.raises(AttributeError):
        SinkInput(draw(0, 1, 16, 1, 4, 4), draw(0, 1, 16, 2, 4, 4), draw(0, 1, 3, 8)).text = None
    assert CellInput.__dataclass_params__.frozen
