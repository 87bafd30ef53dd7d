"""What a run writes of its memory: phases, units, components, timeline and the plan's error, and no bit changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from liveavatar.assemble import assemble
from liveavatar.config import compose
from liveavatar.memory.profiler import PHASES, MemoryProfiler, Prediction, ProfileSettings
from tests.running import SMALL, latents_of, run_command

CPU = torch.device("cpu")
STREAM = ("sampler.steps=2", "request.max_seconds=3", "sink=none", "profile.every=2")


def _run(folder: Path, *overrides: str, plan: Prediction | None = None) -> tuple[torch.Tensor, dict[str, Any], Any]:
    run = assemble(compose("infer", [*SMALL, *STREAM, f"output.dir={folder}", *overrides]))
    run.memory.plan = plan
    with run:
        latents = latents_of(list(run.chunks()))
    path = folder / "memory.json"
    return latents, json.loads(path.read_text()) if path.exists() else {}, run


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, dict[str, Any], Any]:
    return _run(tmp_path_factory.mktemp("watched"), plan=Prediction(dict.fromkeys(PHASES, 5_000_000)))


def test_every_phase_is_measured(watched: Any) -> None:
    _, document, run = watched
    assert list(document["phases"]) == ["load", "encode", "prefill", "steady", "decode"]
    assert all(phase["host"] > 0 and phase["seconds"] > 0 for phase in document["phases"].values())
    assert all(document["phases"][name]["allocated"] > 0 for name in PHASES[1:])
    for phase in PHASES:
        assert run.metrics[f"memory/{phase}/host"] == document["phases"][phase]["host"]
    assert run.metrics["memory/run/allocated"] == max(p.get("allocated", 0) for p in document["phases"].values())
    assert document["baseline"] <= document["phases"]["load"]["host"]


def test_units_and_components_are_told_apart(watched: Any) -> None:
    _, document, run = watched
    dit = run.session.parts.dit
    whole = {name for name in document["units"] if "/" not in name}
    assert set(dit.units()) | {"vae", "speech", "text", "vae decode"} == whole
    # of what is prepared ahead, the voice's is in step with the blocks; the prompt's and the timesteps' is before them
    assert set(document["units"]) - whole == {name for name in dit.parts() if name.endswith("/voice")}
    assert document["units"]["blocks.1"]["above"] > document["units"]["head"]["above"] > 0
    components = document["components"]
    assert components["weights"]["device"] == run.strategy.traffic.held
    caches = sum(components[name]["device"] for name in ("caches", "sink", "scratch"))
    assert caches == run.metrics["memory/caches/device"]
    assert components["decoder"]["device"] > 0
    resting = sum(part["device"] for part in document["phases"]["steady"]["components"].values())
    assert document["phases"]["steady"]["allocated"] >= resting


def test_the_plan_is_compared_with_what_was_measured(watched: Any) -> None:
    _, document, run = watched
    peak = run.metrics["memory/run/allocated"]
    assert run.metrics["memory/plan_error"] == pytest.approx(5_000_000 / peak - 1, abs=1e-3)
    assert document["plan"]["error"]["all"] == run.metrics["memory/plan_error"]
    assert set(document["plan"]["error"]) == {"all", *PHASES[1:]}  # what was not followed is not compared


def test_the_timeline_is_whole(watched: Any) -> None:
    table = watched[1]["timeline"]
    assert len({len(column) for column in table.values()}) == 1
    assert table["seconds"] == sorted(table["seconds"])
    assert list(dict.fromkeys(table["phase"])) == ["load", "encode", "decode", "prefill", "steady"]  # it is warmed up
    assert {"blocks.0", "blocks.2", "vae decode"} <= set(table["unit"])
    assert max(block for block in table["block"] if block is not None) == 6


def test_watching_changes_no_bit_and_leaves_nothing_behind(watched: Any, tmp_path: Path) -> None:
    latents, document, run = _run(tmp_path, "profile.memory=false", "profile.probe=false")
    assert torch.equal(latents, watched[0])
    assert document == {}
    assert run.metrics["memory/steady/host"] > 0
    assert "memory/steady/allocated" not in run.metrics
    dit = watched[2].session.parts.dit
    assert not dit._forward_hooks
    assert not dit._forward_pre_hooks
    assert type(dit.residency).__name__ == "Resident"


@pytest.mark.parametrize("caches", ["device", "host"])
def test_a_ring_and_parked_slabs_are_told(tmp_path: Path, caches: str, watched: Any) -> None:
    chosen = ("+strategy=fsdp_stream", f"strategy.caches={caches}", "parallel.schedule=wavefront")
    latents, document, run = _run(tmp_path, *chosen)
    assert torch.equal(latents, watched[0])
    components, place = document["components"], 1 if caches == "host" else 0
    assert components["ring"]["device"] == run.metrics["memory/weights/device"] > 0
    assert components["weights"]["host"] > 0
    both = (components["caches"]["device"], components["caches"]["host"])
    assert both[place] > 0 == both[1 - place]
    assert components["weights"]["host"] + both[1] == run.metrics["memory/weights/host"]
    assert document["units"]["blocks.0"]["visits"] >= 3


def test_phases_hold_what_was_allocated_in_them() -> None:
    memory = MemoryProfiler(CPU, ProfileSettings(points=64))
    with memory.phase("encode"):
        held = torch.ones(4_000_000)
        memory.read("text")
        del held
    with memory.phase("encode"):  # followed once
        torch.ones(9_000_000)
    memory.enter("steady")
    memory.end()
    assert memory.phases["encode"].allocated == 16_000_000 == memory.units["text"].allocated
    assert memory.values()["memory/run/host"] >= memory.values()["memory/encode/host"] > 0
    assert "memory/plan_error" not in memory.values()
    assert "resident" in memory.said()


@pytest.mark.parametrize(("setting", "value"), [("every", 0), ("points", 2)])
def test_settings_that_cannot_work_are_refused(setting: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"profile\.{setting}={value}"):
        ProfileSettings(**{setting: value})


@pytest.mark.parametrize("strategy", ["", "+strategy=fsdp_stream"])
def test_the_planner_meets_a_tracked_run(strategy: str, tmp_path: Path) -> None:
    """What was foreseen for the embedded model, phase by phase, against what its tensors took: within 5 %."""
    words = ["weights=random", "request.max_seconds=1.5", "sink=none", "fabric.threads=1", f"output.dir={tmp_path}/run"]
    run = assemble(compose("infer", [*words, *([strategy] if strategy else [])]))
    with run:
        latents_of(list(run.chunks()))
    errors = run.memory.errors()
    assert set(errors) == {"all", *PHASES[1:]}
    assert all(abs(error) <= 0.05 for error in errors.values()), errors


MORE = ("fsdp_full", "hsdp_offload", "timestep_pipeline")


@pytest.mark.parametrize(
    "strategy", ["fsdp_stream", "diagonal_pipeline", *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_the_planner_meets_a_tracked_run_of_two_ranks(strategy: str, tmp_path: Path) -> None:
    """The embedded model over gloo: the largest moment of rank 0, within 5 % of what was foreseen."""
    words = ("weights=random", "request.max_seconds=1", "sink=none", "fabric.threads=1", "fabric.devices=2")
    done = run_command(f"+strategy={strategy}", *words, "output.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "run" / "memory.json").read_text())["plan"]
    assert abs(plan["error"]["all"]) <= 0.05, plan
