"""Every combination runs, a broken one keeps its reason and stops nobody, and W&B's files mean what they say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from liveavatar.config import compose
from liveavatar.infer import infer
from liveavatar.sweep import asked_for, members, run_sweep, sweep
from tests.running import SMALL, run_command

SWEEPS = Path(__file__).resolve().parent.parent / "experiments" / "sweeps"
SHORT = [word for word in SMALL if not word.startswith("sampler")]
SHORT += ["request.max_seconds=0.3", "profile.memory=false"]


def here(words: Sequence[str], folder: Path) -> tuple[int, str]:
    """A member in this process, for the tests' sake of time."""
    try:
        infer(compose("infer", words))
    except (Exception, SystemExit) as error:  # noqa: BLE001  as a process would end
        return 2, str(error)
    return 0, ""


def test_a_command_line_is_a_sweep_of_ours_or_hydras() -> None:
    assert asked_for(["-m", "seed=1,2"])
    assert asked_for(["seed=1,2", "--multirun"])
    assert not asked_for(["seed=1"])
    assert not asked_for(["-m", "--cfg", "job"])
    assert not asked_for(["-m", "hydra/launcher=joblib", "seed=1,2"])


def test_every_combination_in_order_with_a_name() -> None:
    found = members(
        ["+strategy=single_device,fsdp_stream", "sampler.steps=range(1,3)", "seed=3", "--config-dir", "mine"]
    )
    assert [member.name for member in found] == [
        "0-strategy=single_device-sampler.steps=1",
        "1-strategy=single_device-sampler.steps=2",
        "2-strategy=fsdp_stream-sampler.steps=1",
        "3-strategy=fsdp_stream-sampler.steps=2",
    ]
    assert found[2].words == ["--config-dir", "mine", "+strategy=fsdp_stream", "sampler.steps=1", "seed=3"]
    (one,) = members(["request.prompt=A man, smiling"])  # words are no list of choices
    assert one.name == "0-run"
    assert compose("infer", one.words).request.prompt == "A man, smiling"
    with pytest.raises(ValueError, match="write several values as key=a,b,c"):
        members(["seed=1,,"])


def test_twelve_runs_of_which_some_are_broken_come_to_an_end(tmp_path: Path) -> None:
    words = [*SHORT, "+strategy=single_device,fsdp_stream", "sampler.steps=1,2,9", "seed=0,1"]
    found = sweep([*words, f"output.dir={tmp_path}", "-m"], here)
    assert len(found) == 12
    broken = [member for member in found if "steps=9" in member.name]
    assert {member.status for member in broken} == {"failed"}
    assert all("sampler.steps" in (member.error or "") for member in broken)
    well = [member for member in found if member not in broken]
    assert [member.status for member in well] == ["finished"] * 8
    for member in well:
        kept = json.loads((tmp_path / member.name / "metrics.json").read_text())
        assert kept["run/finished"] is True
        assert (tmp_path / member.name / "avatar.mp4").stat().st_size > 0
    for member in broken:
        kept = json.loads((tmp_path / member.name / "metrics.json").read_text())
        assert kept["run/finished"] is False
        assert "sampler.steps" in kept["run/error"]
    told = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["status"] for row in told].count("failed") == 4

    asked: list[str] = []

    def note(words: Sequence[str], folder: Path) -> tuple[int, str]:
        asked.append(folder.name)
        return 2, "still broken"

    again = sweep([*words, f"output.dir={tmp_path}", "output.resume=true"], note)
    assert asked == [member.name for member in broken]
    assert [member.status for member in again].count("skipped") == 8


def test_the_command_gives_each_member_a_process_and_tells_how_it_ended(tmp_path: Path) -> None:
    done = run_command("-m", *SHORT, "sampler.steps=1", "+strategy=single_device,nope", "output.dir=s", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    good, bad = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert (good["status"], bad["status"]) == ("finished", "failed")
    assert "nope" in bad["error"]
    assert json.loads((tmp_path / "s" / good["name"] / "metrics.json").read_text())["run/finished"]
    assert "2 of 2" in done.stderr


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run_sweep(["-m", "seed=1,2"]) == 2
    assert "without torchrun" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["grid", "bayes"])
def test_wandb_agents_start_what_the_file_means(name: str) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (extra train)")
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    page = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())
    assert page["method"] == name
    for last in (0, -1):
        chosen = {}
        for key, given in page["parameters"].items():
            several = given.get("values") or [
                given.get("value", given.get("min")),
                given.get("value", given.get("max")),
            ]
            chosen[key] = {"value": several[last]}
        filled = create_sweep_command_args({"args": chosen})
        command: list[str] = []
        for word in create_sweep_command(page["command"]):
            macro = str(word).strip("${}")
            if macro in ("env", "interpreter"):
                continue
            command += filled[macro] if macro in filled else [page["program"] if macro == "program" else str(word)]
        assert command[:2] == ["-m", "liveavatar.infer"]
        config = compose("infer", command[2:])
        assert config.logger._target_.endswith("WandbBoard")
        assert config.logger.mode == "online"
        assert config.strategy._target_.rsplit(".", 1)[-1] == {
            "single_device": "SingleDevice", "timestep_pipeline": "TimestepPipeline", "fsdp_stream": "FsdpStream",
        }[chosen["+strategy"]["value"]]  # fmt: skip
        assert config.request.max_seconds == 2
