"""The closed form against the arithmetic that it answers to: performance notes, 2.2 to 2.4."""

from __future__ import annotations

from dataclasses import replace

import pytest

from liveavatar.config import compose, make
from liveavatar.memory.given import GB, Ask, Setup, Topology
from liveavatar.memory.plan import Plan, draw_up
from liveavatar.memory.sizes import Picture
from liveavatar.memory.speed import attention_flops, cell_flops, linear_flops, pace
from liveavatar.strategies.auto import Option, advice, ask_of, best, choose, options

TOPOLOGIES = ("1x24gb", "4x24gb", "5x24gb", "1x48gb", "1x80gb", "5x80gb", "1xh200", "cpu")


def _asked(*overrides: str) -> tuple[Ask, Topology]:
    cfg = compose("plan", overrides)
    return ask_of(cfg), make(cfg.topology, "topology")


def _found(topology: str, *overrides: str) -> dict[str, list[Option]]:
    return options(*_asked(f"topology={topology}", *overrides))


def _parts(plan: Plan) -> dict[str, int]:
    return dict(plan.ranks[0].phases["steady"])


def test_weights_and_caches_are_those_of_the_notes() -> None:
    ask, _ = _asked()
    parts = _parts(draw_up(ask, Setup("single_device")))
    assert parts["weights"] == pytest.approx(32.59 * GB, rel=1e-3)
    assert parts["caches"] == pytest.approx(41.5 * GB, rel=1e-3)
    assert parts["sink"] == pytest.approx(2.16 * GB, rel=3e-3)
    assert ask.text_params * 2 == pytest.approx(11.36 * GB, rel=1e-3)
    small = _parts(draw_up(replace(ask, picture=Picture(384, 256)), Setup("single_device")))
    assert small["caches"] == pytest.approx(15.1 * GB, rel=2e-3)
    assert small["sink"] == pytest.approx(0.79 * GB, rel=1e-2)


@pytest.mark.parametrize(("size", "linear", "attention"), [("704*384", 82.0, 41.1), ("384*256", 31.2, 5.7)])
def test_the_work_of_a_cell_is_that_of_the_notes(size: str, linear: float, attention: float) -> None:
    ask, _ = _asked(f"request.size={size}", "plan.hoist=false")
    assert linear_flops(ask) / 1e12 == pytest.approx(linear, rel=5e-3)
    assert attention_flops(ask) / 1e12 == pytest.approx(attention, rel=2e-2)


def test_floors_are_those_of_the_notes() -> None:
    """At full efficiency and without decoding, as the notes count."""
    ask, topology = _asked("topology.efficiency=1", "topology.decode_s=1e-9", "plan.hoist=false")
    alone = pace(ask, draw_up(ask, Setup("single_device")), topology)
    assert alone.seconds == pytest.approx(2.98, rel=5e-3)
    piped = best([way for way in options(ask, topology)["diagonal_pipeline"] if not way.plan.setup.settings])
    assert piped.pace.compute_s == pytest.approx(0.746, rel=0.05)  # uneven by a layer's worth
    gathered = pace(ask, draw_up(ask, Setup("fsdp_full", (), 4, "shards")), topology)
    assert gathered.peers_s == pytest.approx(
        7.98 * 32.59 / 32.6, rel=0.03
    )  # Ulysses and FSDP at 12 GB/s, the same bytes
    streams = Setup("fsdp_stream", (), source="host", caches="host")
    once, four = (pace(ask, draw_up(ask, replace(streams, cells=cells)), topology) for cells in (1, 4))
    weights, caches = 4 * 32.59 / 25, 4 * 10.38 * 0.75 / 25  # the block's own tokens are not brought in
    assert once.host_s == pytest.approx(weights + caches, rel=5e-3)
    assert four.host_s == pytest.approx(weights / 4 + caches, rel=5e-3)
    assert (once.bound_by, four.bound_by) == ("host link", "compute")


def test_four_small_cards() -> None:
    """The reference's own way needs about 32 GB and more; a fourth of the layers about 21 GB beside the encoders."""
    found = _found("4x24gb")
    reference = best(found["reference_tpp"])
    assert not reference.fits
    assert 32 <= reference.plan.peak / GB + 1.2 <= 36
    plain = next(way for way in found["diagonal_pipeline"] if not way.plan.setup.settings)
    denoising = [rank.playing(("speech", "vae", "text", "decoder state")) / GB + 1.2 for rank in plain.plan.ranks]
    assert sum(denoising) / 4 == pytest.approx(21.3, rel=0.02)  # layers do not divide evenly by what they weigh
    assert plain.rank.peak_phase == "decode"  # what the notes left out
    assert best(found["diagonal_pipeline"]).fits


def test_one_small_card_streams_from_host_memory() -> None:
    order = choose(_found("1x24gb"))
    assert [way.label for way in order] == ["fsdp_stream"]
    setup = order[0].plan.setup
    assert (setup.source, setup.caches) == ("host", "host")
    assert 57 <= order[0].plan.host / GB + setup.resident * 0.703 <= 75  # the notes: 57 to 70 GB
    assert order[0].pace.bound_by == "compute"


@pytest.mark.parametrize(("topology", "label"), [("1xh200", "single_device"), ("5x80gb", "diagonal_pipeline")])
def test_large_machines_keep_weights_at_rest(topology: str, label: str) -> None:
    assert choose(_found(topology))[0].label == label


def test_ranks_that_share_cells_divide_heads_and_work() -> None:
    ask, machine = _asked("topology=4x24gb")
    shared = Setup("replicated", ("parallel.ulysses_size=4",), 4, ulysses=4)
    plan, alone = draw_up(ask, shared), draw_up(ask, Setup("single_device"))
    parts, whole = _parts(plan), _parts(alone)
    assert parts["weights"] == whole["weights"]
    assert [4 * parts[name] for name in ("caches", "sink", "scratch")] == [
        whole[name] for name in ("caches", "sink", "scratch")
    ]
    assert parts["mail"] == 2 * ask.picture.tokens * 5120 * 2  # a room each for a whole block, leaving and coming
    took, single = pace(ask, plan, machine), pace(ask, alone, machine)
    assert took.compute_s == pytest.approx(single.compute_s / 4)
    assert took.exchange_s == pytest.approx(4 * 40 * 4 * 792 * 5120 * 2 * 0.75 / 12e9)  # steps, layers, q k v and back
    assert took.seconds == pytest.approx(took.compute_s + took.decode_s + took.exchange_s)
    assert pace(ask, plan, replace(machine, received_gbs=1)).bound_by == "peer link"


def test_ways_that_share_cells_are_offered_where_heads_divide() -> None:
    found = _found("4x24gb")
    for label in ("replicated", "fsdp_stream", "fsdp_full", "hsdp_offload"):
        assert any("parallel.ulysses_size=4" in way.plan.setup.settings for way in found[label])
    assert best(found["hsdp_offload"]).plan.setup.ulysses == 4  # caches of all heads are what does not fit
    ask, machine = _asked("topology=5x80gb", "topology.devices=3")  # 3 does not divide 40
    assert "replicated" not in options(ask, machine)


@pytest.mark.parametrize(("topology", "groups"), [("4x24gb", {2, 3}), ("5x24gb", {2, 3, 4})])
def test_grids_lie_between_both_pipelines(topology: str, groups: set[int]) -> None:
    ask, _ = _asked()
    ways = _found(topology)["diagonal_pipeline"]
    cut = {
        int(word.split("=")[1]): way.plan.setup.stages
        for way in ways
        for word in way.plan.setup.settings
        if word.startswith("strategy.step_groups=")
    }
    assert cut.keys() == groups
    for number, stages in cut.items():
        assert len({steps for steps, _ in stages}) == number
        assert sum(len(steps) * len(layers) for steps, layers in stages) == ask.steps * ask.dit.layers


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_what_fits_leaves_its_margin_and_what_does_not_is_told_why(topology: str) -> None:
    ask, machine = _asked(f"topology={topology}")
    found = options(ask, machine)
    for label, ways in found.items():
        way = best(ways)
        if way.fits and machine.accelerator == "cuda":
            assert way.plan.peak + machine.margin_gb * GB <= machine.device_gb * GB
            assert way.plan.host <= machine.host_gb * GB
        if not way.fits:
            assert way.excess > 0
            assert "would" in advice(label, ask, machine, found, 64)


def test_advice_that_is_taken_fits() -> None:
    ask, machine = _asked("topology=4x24gb")
    told = advice("fsdp_full", ask, machine, options(ask, machine), 64)
    size = told.split("request.size=")[1].split(" ")[0]
    assert best(_found("4x24gb", f"request.size={size}")["fsdp_full"]).fits


def test_eight_bits_halve_what_they_are_asked_for() -> None:
    ask, _ = _asked("plan.weights=fp8", "plan.cache=fp8")
    parts = _parts(draw_up(ask, Setup("single_device")))
    assert parts["weights"] == pytest.approx(16.65 * GB, rel=2e-3)
    assert parts["caches"] == pytest.approx(20.76 * GB * (1 + 4 / 128), rel=2e-3)  # a scale for each head of a token


def test_small_weights_and_caches_are_planned_as_a_run_is_asked_for_them() -> None:
    ask, machine = _asked("topology=4x24gb", "precision=fp8", "precision.cache=fp8")
    assert (ask.weights, ask.cache) == ("fp8", "fp8")
    assert ask == _asked("topology=4x24gb", "plan.weights=fp8", "plan.cache=fp8")[0]
    small, whole = choose(options(ask, machine)), choose(_found("4x24gb", "precision=fp8"))
    assert small[0].plan.peak < whole[0].plan.peak or small[0].pace.seconds < whole[0].pace.seconds
    assert {way.label for way in small} >= {way.label for way in whole}


def test_what_lends_whole_units_is_planned_without_hoisting() -> None:
    ask, _ = _asked()
    for setup in (Setup("fsdp_full", ranks=4, source="shards"), Setup("fsdp_stream", ranks=4, source="peers")):
        assert ("prepared" in _parts(draw_up(ask, setup))) == setup.hoists == (setup.strategy == "fsdp_stream")


def test_hoisted_conditioning_leaves_the_ring() -> None:
    ask, _ = _asked("plan.hoist=true")
    setup = Setup("fsdp_stream", source="host", caches="host")
    hoisted, whole = draw_up(ask, setup), draw_up(replace(ask, hoisted=False), setup)
    assert hoisted.streamed / whole.streamed == pytest.approx(25.2 / 32.6, rel=0.01)
    assert _parts(hoisted)["ring"] == pytest.approx(2 * 597.9e6, rel=2e-3)
    assert cell_flops(replace(ask, hoisted=False)) - cell_flops(ask) == pytest.approx(2.1e12, rel=0.03)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("topology.devices=0", "topology.devices=0"),
        ("topology.device_gb=1", "leaves nothing"),
        ("topology.host_gbs=0", "topology.host_gbs=0"),
        ("topology.accelerator=tpu", "cuda or cpu"),
        ("plan.weights=int3", "plan.weights='int3'"),
        ("memory.text=gone", "freed or resident"),
        ("request.size=10*10", "nearest is request.size=64\\*64"),
        ("sampler.steps=9", "1 to 8 steps"),
    ],
)
def test_what_makes_no_sense_is_refused(override: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        _asked(override)
