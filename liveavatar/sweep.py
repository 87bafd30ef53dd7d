"""python -m liveavatar.infer -m …: every combination of the values given, one after another, each in its own process.

    python -m liveavatar.infer -m +strategy=single_device,fsdp_stream sampler.steps=1,2,4 output.dir=sweeps/steps

A process of its own keeps the memory of members apart, and the death of one from the others. Hydra expands
the words; with `hydra/launcher=joblib` or `submitit_slurm` Hydra runs the members too (experiments/sweeps/README.md).
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from liveavatar.command import FAILED, INTERRUPTED, Interrupts, say, told
from liveavatar.config import quoted
from liveavatar.tracking import make_run_directory, start_log, write_metrics

log = logging.getLogger(__name__)

ASKS = ("-m", "--multirun")
HYDRAS = ("-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "--version", "--experimental-rerun")
TAKE_VALUES = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp")
LONGEST_ERROR = 1000

Runner = Callable[[Sequence[str], Path], tuple[int, str]]
"""Runs a member with these words, its files in that folder; returns its exit code and what it said last."""


@dataclass
class Member:
    """One combination. `status` is finished, failed or skipped."""

    name: str
    words: list[str]
    status: str = ""
    error: str | None = None
    seconds: float = 0.0


def asked_for(words: Sequence[str]) -> bool:
    """Whether a command line asks for a sweep of ours, and not for one that Hydra runs by a launcher of the user's."""
    if not any(word in ASKS for word in words):
        return False
    hydras = any(word.partition("=")[0] in HYDRAS for word in words)
    return not hydras and not any(word.lstrip("+").startswith(("hydra/launcher=", "hydra/sweeper=")) for word in words)


def members(words: Sequence[str]) -> list[Member]:
    """Every combination of the values in `words`, numbered in order. Raises ValueError for words it cannot read."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    flags, given = _divided(words)
    try:
        parsed = OverridesParser.create().parse_overrides(quoted(given))
        (combinations,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise ValueError(f"{str(error).splitlines()[0]}: write several values as key=a,b,c") from error
    varied = {word.key_or_group for word in parsed if word.is_sweep_override()}
    width = len(str(len(combinations) - 1))
    found = []
    for number, combination in enumerate(combinations):
        told = [word for word in combination if word.lstrip("+").partition("=")[0] in varied]
        name = re.sub(r"[^\w.=-]+", "-", ",".join(word.lstrip("+") for word in told)).strip("-")[:80]
        found.append(Member(f"{number:0{width}d}-{name or 'run'}", [*flags, *combination]))
    return found


def sweep(words: Sequence[str], run: Runner | None = None) -> list[Member]:
    """Run all members of a sweep and keep how each of them ended in sweep.json; one that fails stops no other.

    Members have folders of their own below `output.dir` (else outputs/sweeps/…). `output.resume=true` leaves out those
    that are finished there. Raises ValueError for words that cannot be read, and under torchrun or Slurm, where
    every process would sweep.
    """
    if "LOCAL_RANK" in os.environ or ("SLURM_PROCID" in os.environ and os.environ.get("SLURM_NTASKS", "1") != "1"):
        raise ValueError("-m sweeps by itself: start it without torchrun or srun; fabric.devices=N gives N processes")
    rest, given, resume = _own(words)
    folder = make_run_directory(given or f"outputs/sweeps/{time.strftime('%Y-%m-%d-%H-%M-%S')}")
    start_log(folder)
    planned = members(rest)
    log.info("%d runs, in %s", len(planned), folder)
    try:
        for number, member in enumerate(planned, 1):
            _one(member, folder / member.name, resume, run or in_a_process)
            said = f": {member.error.splitlines()[0]}" if member.error else f" in {member.seconds:.1f} s"
            log.info("%d of %d %s: %s%s", number, len(planned), member.name, member.status, said)
            _keep(folder, planned)
    finally:
        _keep(folder, planned)
    return planned


def _one(member: Member, folder: Path, resume: bool, run: Runner) -> None:
    if resume and _finished(folder, member):
        member.status = "skipped"
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").unlink(missing_ok=True)  # of an earlier attempt
    (folder / "words.json").write_text(json.dumps(member.words, ensure_ascii=False) + "\n", encoding="utf-8")
    began = time.monotonic()
    code, said = run([*member.words, f"output.dir={folder}"], folder)
    member.seconds = time.monotonic() - began
    member.status = "failed" if code else "finished"
    if code:
        member.error = said or f"it ended with exit code {code}"
        if not (folder / "metrics.json").exists():
            write_metrics(folder, {"run/finished": False, "run/error": member.error})


def in_a_process(words: Sequence[str], folder: Path) -> tuple[int, str]:
    """A member as a command of its own; what it says on the screen is kept in its folder."""
    screen = folder / "screen.txt"
    command = [sys.executable, "-m", "liveavatar.infer", *words]
    with screen.open("wb") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    return code, _reason(screen.read_text(encoding="utf-8", errors="replace"))


def _reason(text: str) -> str:
    """Why a command ended: its own words for it, else its last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    told = [number for number, line in enumerate(lines) if line.startswith("liveavatar: ")]
    found = "\n".join(lines[told[-1] :]).removeprefix("liveavatar: ") if told else "\n".join(_hydras(lines))
    return found[:LONGEST_ERROR]


def _hydras(lines: Sequence[str]) -> list[str]:
    """What Hydra says of a word it cannot take, or the last line."""
    about = [line for line in lines if line.startswith(("Could not", "In ", "Key ", "Error"))]
    return about[-1:] or list(lines[-1:])


def _finished(folder: Path, member: Member) -> bool:
    try:
        words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        return words == member.words and json.loads((folder / "metrics.json").read_text())["run/finished"] is True
    except (OSError, ValueError, KeyError):
        return False


def _keep(folder: Path, planned: Sequence[Member]) -> None:
    draft = folder / "sweep.json.part"
    draft.write_text(json.dumps([asdict(member) for member in planned], indent=1, ensure_ascii=False) + "\n")
    draft.replace(folder / "sweep.json")


def _own(words: Sequence[str]) -> tuple[list[str], str | None, bool]:
    """What is meant for the sweep itself: where its folders lie, and whether to go on."""
    rest, folder, resume = [], None, False
    for word in words:
        key, sign, value = word.partition("=")
        if sign and key == "output.dir":
            folder = value.strip("\"'")
        elif sign and key == "output.resume":
            resume = value.lower() in ("true", "1", "yes", "on")
        elif word not in ASKS:
            rest.append(word)
    return rest, folder, resume


def _divided(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags with their values, and overrides."""
    flags, given, takes = [], [], False
    for word in words:
        if takes or word.startswith("-"):
            flags.append(word)
            takes = word in TAKE_VALUES
        else:
            given.append(word)
    return flags, given


def run_sweep(words: Sequence[str]) -> int:
    """The command: 0 where all members finished, 1 where one failed, 2 where there was nothing to run, 130 after ^C."""
    try:
        with Interrupts():
            found = sweep(words)
    except ValueError as error:
        return told(error)
    except KeyboardInterrupt:
        say("interrupted; sweep.json says what was finished, output.resume=true goes on")
        return INTERRUPTED
    return FAILED if any(member.status == "failed" for member in found) else 0
