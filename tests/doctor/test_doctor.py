"""The doctor as a whole: its words, its exit code, its output, and that it runs where PyTorch does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from liveavatar.doctor import examine, finding, links, main
from liveavatar.doctor.finding import FAIL, OK, WARN, Finding, can_start, verdict
from tests.running import command

ROOT = Path(__file__).resolve().parents[2]
CARD = {"name": "A card", "capability": [8, 9], "free": 239 * 10**8, "total": 24 * 10**9, "peers": []}
FACTS: dict[str, Any] = {"torch": "2.12.1", "cuda": None, "torchaudio": "2.11.0", "gpus": []}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """No processes: the trial's outcome is given."""
    facts = dict(FACTS)

    def start(backend: str, world: int, timeout_s: float) -> links.Trial:
        return links.Trial(backend, world, timeout_s, facts=facts, talks=[{"met_s": 0.1, "bytes_per_s": 1e9}])

    monkeypatch.setattr(links.Trial, "start", start)
    for name in ("MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return facts


def _by_name(found: list[Finding]) -> dict[str, Finding]:
    return {f"{each.group}/{each.name}": each for each in found}


def test_a_run_can_start_here(tmp_path: Path) -> None:
    """The real thing: processes meet over gloo, and it does not take long."""
    began = time.perf_counter()
    found = examine([f"output.dir={tmp_path}", "fabric.devices=2", "fabric.accelerator=cpu"])
    seconds = time.perf_counter() - began
    assert can_start(found), [each for each in found if each.state == FAIL]
    talk = _by_name(found)["ranks/self-test"]
    assert talk.state == OK, talk
    assert "gloo, 2 ranks: met in" in talk.said
    assert seconds < 60  # 15 on an idle machine; tests share theirs
    assert all(each.mend for each in found if each.state in (FAIL, WARN))


def test_it_runs_and_says_so_without_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('there is none')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    told = tmp_path / "told.json"
    arguments = [f"output.json={told}", "doctor.timeout_s=3", f"output.dir={tmp_path}"]
    done = subprocess.run(
        command(*arguments, module="liveavatar.doctor"), cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "PyTorch does not start: rank 0: ImportError: there is none" in done.stdout
    assert "pip install 'torch" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("a run cannot start: 1 to mend")
    document = json.loads(told.read_text())
    assert document["can_start"] is False
    assert {"group", "name", "state", "said", "mend"} == set(document["findings"][0])


def test_words_are_those_of_a_run(quick: dict[str, Any], tmp_path: Path) -> None:
    chosen = ["model=s2v_14b", "+strategy=fsdp_stream", "strategy.source=disk", f"strategy.spill_dir={tmp_path}"]
    found = _by_name(examine([*chosen, f"output.dir={tmp_path}", "precision=bf16"]))
    assert found["config/compose"].state == OK
    assert "32.6 GB wanted" in found["disks/strategy.spill_dir"].said or found["disks/strategy.spill_dir"].state == OK
    assert found["weights/tokenizer"].state == FAIL
    assert "python -m liveavatar.convert fetch weights.dir=" in found["weights/tokenizer"].mend
    assert "weights 13.4 GB" in found["host/memory"].said


def test_what_does_not_compose_is_a_finding(quick: dict[str, Any]) -> None:
    found = _by_name(examine(["+strategy=nope"]))
    assert found["config/compose"].state == FAIL
    assert "fsdp_stream" in found["config/compose"].said


def test_a_missing_request_and_folder_are_findings(quick: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = _by_name(examine([f"request.image={tmp_path}/me, you.png", f"output.dir={tmp_path}/file/out"]))
    assert "me, you.png does not exist" in found["request/request.image"].said
    assert found["disks/output.dir"].state == FAIL


def test_cards_are_held_against_the_weights(quick: dict[str, Any], tmp_path: Path) -> None:
    quick |= {"gpus": [CARD | {"peers": [1]}, CARD], "cuda": "12.8", "architectures": ["sm_80", "sm_89"]}
    model = ["model=s2v_14b", "precision=bf16", f"output.dir={tmp_path}"]
    found = _by_name(examine(model))
    assert found["devices/cuda:0"].state == FAIL
    assert "weights at rest take 44.8 GB" in found["devices/cuda:0"].said
    assert found["devices/peer access"].state == "note"
    piped = _by_name(examine([*model, "+strategy=diagonal_pipeline", "fabric.devices=3"]))
    assert piped["devices/count"].mend == "fabric.devices=2"
    assert piped["devices/cuda:0"].state == OK
    quick["architectures"] = ["sm_120"]
    assert "no code for capability 8.9" in _by_name(examine(model))["devices/cuda:0"].said
    quick["gpus"] = []
    assert _by_name(examine([*model, "fabric.accelerator=cuda"]))["devices/GPU"].state == FAIL


def test_ports_and_leftovers_of_a_group(quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "99999999")
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = _by_name(links.check_ports())
    assert found["ranks/port"].mend == "unset MASTER_PORT"
    assert found["ranks/environment"].mend == "unset WORLD_SIZE"


def test_ranks_that_do_not_meet_are_a_finding_in_time() -> None:
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    trial = links.Trial(
        "gloo", 1, -links.IMPORT_S, [subprocess.Popen(slow, text=True, stdout=-1, stderr=-1)], dict(FACTS)
    )
    trial.finish()
    (said,) = links.check_talk(trial, devices=2)
    assert (said.state, said.said) == (FAIL, "gloo, 1 ranks: rank 0: no answer in time")
    assert links.check_talk(trial, devices=1)[0].state == WARN


@pytest.mark.parametrize("words", [["--fix"], ["doctor.timeout_s=soon"], ["doctor.timeout_s=-1"]])
def test_words_that_make_no_sense(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert words[0].partition("=")[0] in capsys.readouterr().err


def test_help_and_a_table_on_a_terminal(
    quick: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["--help"]) == 0
    assert "output.json=FILE" in capsys.readouterr().out
    monkeypatch.setattr(finding.sys.stdout, "isatty", lambda: True, raising=False)
    assert main([f"output.dir={tmp_path}"]) == 0
    assert "a run can start" in capsys.readouterr().out


def test_the_verdict_counts() -> None:
    sick = [Finding("a", "b", FAIL, ""), Finding("a", "c", WARN, "")]
    assert verdict(sick) == "a run cannot start: 1 to mend, 1 to look at"
    assert verdict(sick[1:]) == "a run can start; 1 to look at"
