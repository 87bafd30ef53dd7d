"""python -m liveavatar.bench: what each strategy and each peer costs in memory and time, on the same work, in one run.

python -m liveavatar.bench suite=cpu
python -m liveavatar.bench suite=gpu output.dir=bench budget_s=540
python -m liveavatar.bench suite=gpu output.dir=bench budget_s=540 resume=true
"""

from __future__ import annotations

import json
import logging
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liveavatar.benching.rows import SUITES, Row, chosen, cpu_rows, gpu_rows
from liveavatar.command import FAILED, run_command
from liveavatar.tracking import make_run_directory, stamp, start_log

if TYPE_CHECKING:
    from omegaconf import DictConfig

SETTINGS = ("suite", "short", "device", "shape", "dtype", "threads", "seed")
"""What the outcomes of one folder have in common."""

REPEATS = {"cpu": 3, "gpu": 3}
DEVICES = ("cpu", "cuda")
PEERS = ("accelerate", "diffusers", "safetensors", "matplotlib")
LOG = "liveavatar.benching"
"""Asked for when it is needed: Hydra silences loggers that are there before it."""

UNFINISHED = 3
"""Exit code where the budget has left rows undone."""


def bench(cfg: DictConfig) -> dict[str, Any]:
    """Run what is due of a suite, and write its tables; `rows`, `differences`, `undone` and the folder of it all.

    Raises ValueError, naming the key, for what cannot be.
    """
    from liveavatar.benching.compare import previous
    from liveavatar.benching.conduct import DONE, Conductor, turns

    log = logging.getLogger(LOG)
    settings = _settings(cfg)
    rows = chosen(_rows(settings), list(cfg.only) if cfg.only is not None else None)
    repeats = cfg.repeats if cfg.repeats is not None else (1 if cfg.short else REPEATS[cfg.suite])
    if repeats < 1 or (cfg.budget_s is not None and cfg.budget_s <= 0):
        raise ValueError(f"repeats={cfg.repeats} must be at least 1 and budget_s={cfg.budget_s} above 0, or null")
    if not cfg.compare.tolerance >= 0:
        raise ValueError(f"compare.tolerance={cfg.compare.tolerance} cannot be negative: 0.3 allows 30 %")
    before = previous(cfg.compare.previous, cfg.suite, cfg.short)
    folder = make_run_directory(cfg.output.dir)
    _keep_settings(folder, settings, cfg.resume)
    start_log(folder)
    skipped = _skipped(rows, settings["device"])
    for name, reason in skipped.items():
        log.info("%s: skipped, %s", name, reason)
    due = turns([row for row in rows if row.name not in skipped], repeats, cfg.seed)
    outcomes: dict[tuple[str, int], dict[str, Any]] = {}
    undone = []
    with Conductor(folder, settings["threads"], cfg.budget_s) as conductor:
        for turn, outcome in conductor.play(due):
            if outcome is None:
                undone.append(turn.stem)
            else:
                outcomes[turn.row.name, turn.repeat] = outcome
    about = _about(settings, repeats)
    loads = [outcome["load"] for outcome in outcomes.values() if "load" in outcome]
    about["load"] = statistics.median(loads) if loads else None
    summaries, notes = _written(folder, rows, outcomes, skipped, about, before, cfg)
    failed = [row["row"] for row in summaries if row["status"] not in (*DONE, "skipped", "not run")]
    return {"rows": summaries, "differences": notes, "undone": undone, "failed": failed, "folder": folder}


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """The settings as they are meant, `null` filled in. Raises ValueError for what there is not."""
    from liveavatar.benching.sizes import SIZES

    if cfg.suite not in SUITES:
        raise ValueError(f"suite={cfg.suite} is unknown: write suite=cpu (runs everywhere) or suite=gpu")
    if cfg.device is not None and cfg.device not in DEVICES:
        raise ValueError(f"device={cfg.device} is unknown: write device=cpu or cuda, or null for the suite's own")
    if cfg.threads is not None and cfg.threads < 1:
        raise ValueError(f"threads={cfg.threads} must be at least 1, or null for the suite's own")
    gpu = cfg.suite == "gpu"
    device = cfg.device or ("cuda" if gpu else "cpu")
    shape = cfg.shape or ("14b" if gpu else "tiny" if cfg.short else "small")
    if shape not in SIZES:
        raise ValueError(f"shape={shape} is unknown: write {', '.join(SIZES)}")
    if not gpu and device != "cpu":
        raise ValueError("suite=cpu measures on device=cpu: write suite=gpu for the card")
    dtype = cfg.dtype or ("bfloat16" if gpu else "float32")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={dtype} is unknown: write float32 or bfloat16")
    if not gpu and dtype != "float32":
        raise ValueError("suite=cpu has its own kinds of numbers: leave dtype out, or write suite=gpu device=cpu")
    threads = cfg.threads or (8 if device == "cuda" else 1)
    return {
        "suite": cfg.suite,
        "short": bool(cfg.short),
        "device": device,
        "shape": shape,
        "dtype": dtype,
        "threads": threads,
        "seed": cfg.seed,
    }


def _rows(settings: dict[str, Any]) -> list[Row]:
    if settings["suite"] == "cpu":
        return cpu_rows(settings["device"], settings["shape"], settings["short"])
    return gpu_rows(settings["device"], settings["shape"], settings["dtype"], settings["short"])


def _keep_settings(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """A folder holds outcomes of one kind. Raises ValueError where they would be mixed."""
    path = folder / "settings.json"
    if path.exists():
        kept = json.loads(path.read_text())
        other = [name for name in SETTINGS if kept.get(name) != settings[name]]
        if resume and other:
            told = ", ".join(f"{name}={kept.get(name)} (now {settings[name]})" for name in other)
            raise ValueError(f"output.dir={folder} holds a bench of {told}: name another folder, or the same settings")
        if not resume and any((folder / "rows").glob("*.json")):
            raise ValueError(f"output.dir={folder} holds results already: write resume=true, or name another folder")
    path.write_text(json.dumps(settings, indent=1) + "\n")


def _skipped(rows: list[Row], device: str) -> dict[str, str]:
    """Rows that cannot run here, with the reason."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return {row.name: "needs a CUDA device, and PyTorch sees none" for row in rows}
    return {row.name: reason for row in rows if (reason := row.lacks(device))}


def _about(settings: dict[str, Any], repeats: int) -> dict[str, Any]:
    """What it was measured on."""
    found = {**settings, "repeats": repeats, "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
    found["command"] = " ".join(["python -m liveavatar.bench", *sys.argv[1:]])
    device = settings["device"]
    if device == "cuda":
        import torch

        device = device if torch.cuda.is_available() else "cpu"
        found |= _driver()
    found |= stamp(device, settings["threads"], 1)
    for package in PEERS:
        try:
            found[f"run/{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _driver() -> dict[str, Any]:
    """What the driver says of the card and its link; nothing where its program is not there."""
    asked = ("driver_version", "pcie.link.gen.current", "pcie.link.width.current", "clocks.sm", "clocks.max.sm")
    command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return {f"run/{name}": value.strip() for name, value in zip(asked, said.split(","), strict=False)}


def _written(
    folder: Path,
    rows: list[Row],
    outcomes: dict[tuple[str, int], dict[str, Any]],
    skipped: dict[str, str],
    about: dict[str, Any],
    before: Path | None,
    cfg: DictConfig,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The tables and the figure; and what differs from the table before."""
    from liveavatar.benching.compare import differences
    from liveavatar.benching.figure import draw
    from liveavatar.benching.summary import summarise
    from liveavatar.benching.table import write

    summaries = summarise(rows, outcomes, skipped, folder)
    notes: list[str] = []
    said = []
    if before is not None:
        notes, compared = differences(before, summaries, cfg.compare.tolerance, ratios=not cfg.short)
        said.append(f"Compared with an earlier table: {compared} values, {len(notes)} of them changed or worse.")
        said += [f"- {note}" for note in notes]
    write(folder, summaries, about, said)
    if why := draw(folder / "figure.png", summaries, about["command"]):
        logging.getLogger(LOG).info(why)
    return summaries, notes


def _main(cfg: DictConfig) -> int:
    told = bench(cfg)
    sys.stdout.write((told["folder"] / "table.md").read_text(encoding="utf-8"))
    for note in told["differences"]:
        sys.stderr.write(f"liveavatar: {note}\n")
    if told["undone"]:
        sys.stderr.write(f"liveavatar: {len(told['undone'])} turns are left: the same with resume=true goes on\n")
        return UNFINISHED
    if told["failed"]:
        sys.stderr.write(f"liveavatar: failed: {', '.join(told['failed'])}; see rows/ in {told['folder']}\n")
    return FAILED if told["failed"] or told["differences"] else 0


def main() -> None:
    """Entry point of `python -m liveavatar.bench` and of the console script."""
    run_command("bench", _main, interrupted="interrupted; what is measured is kept, resume=true goes on")


if __name__ == "__main__":
    main()
