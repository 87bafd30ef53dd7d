"""What is left to the planner: decided before Fabric starts, said in the log, and as exact as the plan."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from liveavatar.config import compose, conf_dir, make
from liveavatar.infer import infer
from liveavatar.memory.given import Setup
from liveavatar.memory.plan import draw_up
from liveavatar.settings import settled
from liveavatar.strategies.auto import ask_of, has_key, options
from tests.scene import meta_dit

MICRO = ("model=micro", "request.max_seconds=0.4", "fabric.threads=1", "fabric.accelerator=cpu")


def _settled(*overrides: str) -> tuple[Any, str]:
    return settled(compose("infer", [*MICRO, *overrides]))


def test_room_for_everything_takes_the_one_device() -> None:
    cfg, reason = _settled("+strategy=auto", "+topology=1x24gb")
    assert cfg.strategy._target_.endswith("SingleDevice")
    assert reason.startswith("auto: single_device, for it needs")


def test_little_room_streams(tmp_path: Path) -> None:
    whole = _needs("single_device")
    room = f"topology.device_gb={(whole - 20_000) / 1e9}"
    given = ("+strategy=auto", "+topology=1x24gb", room, "topology.margin_gb=0", f"output.dir={tmp_path}")
    cfg, reason = _settled(*given)
    assert cfg.strategy._target_.endswith("FsdpStream")
    assert "+strategy=fsdp_stream" in reason
    metrics = infer(compose("infer", [*MICRO, *given]))
    assert metrics["strategy"] == "fsdp_stream"
    assert reason in (tmp_path / "run.log").read_text()


def test_no_room_is_refused_with_what_would_do() -> None:
    with pytest.raises(ValueError, match=r"\+strategy=auto: nothing fits 1x24gb .*would"):
        _settled("+strategy=auto", "+topology=1x24gb", "topology.device_gb=0.0001", "topology.margin_gb=0")


def test_ranks_follow_the_topology() -> None:
    slow = ("topology.fp32_tflops=1e-6", "topology.decode_s=1e-9", "topology.devices=2")
    cfg, _ = _settled("+strategy=auto", "+topology=5x80gb", *slow)
    assert cfg.fabric.devices == 2
    assert cfg.strategy._target_.endswith("Pipeline")


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_as_many_blocks_stay_as_the_budget_holds(blocks: int) -> None:
    ask = ask_of(compose("infer", MICRO))
    setup = Setup("fsdp_stream", source="host", resident=blocks)
    room = draw_up(ask, setup).peak
    given = ("+strategy=fsdp_stream", "strategy.resident=auto", "+topology=1x24gb", "topology.margin_gb=0")
    cfg, reason = _settled(*given, f"topology.device_gb={(room + 64) / 1e9}")
    assert cfg.strategy.resident == blocks
    assert f"strategy.resident={blocks}" in reason


def test_without_a_budget_all_blocks_stay_on_a_cpu() -> None:
    cfg, _ = _settled("+strategy=fsdp_stream", "strategy.resident=auto")
    assert cfg.strategy.resident == 3


def test_a_strategy_alone_wants_a_number() -> None:
    with pytest.raises(ValueError, match=r"strategy\.resident='auto'"):
        make(compose("infer", ["+strategy=fsdp_stream", "strategy.resident=auto"]).strategy, "strategy")


def _needs(strategy: str) -> int:
    ask = ask_of(compose("infer", MICRO))
    return draw_up(ask, Setup(strategy)).peak


@pytest.mark.parametrize("overrides", [(), ("+strategy=fsdp_stream", "strategy.slots=3")])
def test_what_is_planned_is_what_a_run_measures(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Weights at rest, ring and caches, to the byte, for the picture that the run makes."""
    given = [*MICRO, *overrides, "request.size=128*64", f"output.dir={tmp_path}"]
    cfg = compose("infer", given)
    measured = infer(cfg)
    streams = "strategy.slots=3" in overrides
    ask = ask_of(compose("infer", [*given, f"request.size={_size(tmp_path)}"]))
    setup = Setup("fsdp_stream", source="host", slots=3) if streams else Setup("single_device")
    plan = draw_up(ask, setup)
    parts = plan.ranks[0].phases["steady"]
    assert measured["memory/weights/device"] == parts["weights"] + parts.get("ring", 0)
    assert measured["memory/weights/host"] == plan.host
    assert measured["memory/caches/device"] == parts["caches"] + parts["sink"] + parts["scratch"]


def _size(folder: Path) -> str:
    import av

    with av.open(str(folder / "avatar.mp4")) as video:
        stream = video.streams.video[0]
        return f"{stream.height}*{stream.width}"


def test_what_the_runtime_lacks_is_planned_and_never_chosen() -> None:
    cfg = compose("plan", ["topology=4x24gb"])
    for ways in options(ask_of(cfg), make(cfg.topology, "topology")).values():
        for way in ways:
            asked = [word.split("=")[0].removeprefix("strategy.") for word in way.plan.setup.settings]
            keys = [
                key for key, word in zip(asked, way.plan.setup.settings, strict=True) if word.startswith("strategy.")
            ]
            known = all(has_key(way.plan.setup.strategy, key) for key in keys)
            assert known or way.plan.setup.missing
            assert way.runs <= (not way.plan.setup.missing)


def test_a_text_encoder_is_there_for_its_prompt_only() -> None:
    from liveavatar.checkpoint.load import Lent, materialise
    from liveavatar.checkpoint.read import RandomWeights

    node = compose("infer", ["model=micro"]).model.text
    with torch.device("meta"):
        kept, lent = make(node, "text"), make(node, "text")
    materialise(kept, RandomWeights(0), torch.device("cpu"), torch.float32)
    encoder = Lent(lent, RandomWeights(0), torch.device("cpu"), torch.float32)
    ids = torch.tensor([5, 9, 1])
    with torch.no_grad():
        assert all(torch.equal(encoder.encode(ids), kept.encode(ids)) for _ in range(2))
    assert all(parameter.is_meta for parameter in lent.parameters())


def test_settings_are_json(tmp_path: Path) -> None:
    from liveavatar.plan import plan

    told = json.loads(json.dumps(plan(compose("plan", ["topology=1xh200"]))))
    assert told["chosen"] == "single_device"
    row = told["strategies"]["single_device"]
    assert {"fits", "peak_gb", "parts", "host_gb", "seconds_per_12_frames", "bound_by", "command", "advice"} <= set(row)


@pytest.mark.parametrize("name", ["diagonal_pipeline", "timestep_pipeline"])
def test_what_is_typed_cuts_as_it_was_planned(name: str) -> None:
    """The settings of each way to run a pipeline, given to the strategy, divide the work as the plan has it."""
    cfg = compose("plan", ["model=s2v_14b", "topology=4x24gb"])
    ways = options(ask_of(cfg), make(cfg.topology, "topology"))[name]
    node, dit = OmegaConf.load(Path(conf_dir()) / "strategy" / f"{name}.yaml"), meta_dit("s2v_14b")
    checked = set()
    for setup in (way.plan.setup for way in ways):
        own = OmegaConf.from_dotlist([word for word in setup.settings if word.startswith("strategy.")])
        strategy = make(OmegaConf.merge(node, own.get("strategy", {})), "strategy")
        strategy.cluster_environment = SimpleNamespace(world_size=lambda: 4, global_rank=lambda: 0)
        decode = "rank" if "parallel.decode=rank" in setup.settings else "inline"
        dit.stage = range(dit.num_layers)
        strategy.arrange(dit, 4, decode)
        assert [(stage.steps, stage.layers) for stage in strategy.table.stages] == list(setup.stages), setup.settings
        checked |= set(setup.settings)
    if name == "diagonal_pipeline":
        assert {"strategy.decode_cost=24", "strategy.step_groups=2", "parallel.decode=rank"} <= checked
