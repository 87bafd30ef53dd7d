"""python -m liveavatar.evaluate: scores of finished videos, each with its definition.

python -m liveavatar.evaluate video=avatar.mp4 reference=other.mp4
python -m liveavatar.evaluate video=folder metrics=toon json=scores.json
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liveavatar.command import run_command
from liveavatar.config import make

if TYPE_CHECKING:
    from omegaconf import DictConfig

SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v")
PIECE = 12
"""Frames that are shown to the meters at a time, as in a run."""


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Score `cfg.video`: `videos` by path, each its metrics or `skipped: <reason>`; `about` the definitions.

    Raises ValueError, naming the key, where nothing could be scored.
    """
    from omegaconf import OmegaConf

    given = Path(str(cfg.video)).expanduser()
    files = _files(given)
    node = OmegaConf.to_container(cfg.metrics, resolve=True)
    tasks = [(node, file, _reference(cfg.reference, given, file), cfg.audio) for file in files]
    jobs = min(len(tasks), cfg.jobs or os.cpu_count() or 1)
    if jobs < 1:
        raise ValueError(f"jobs={cfg.jobs} must be at least 1, or null")
    if jobs == 1:
        told = [_scored(task) for task in tasks]
    else:
        import multiprocessing

        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            told = list(pool.map(_scored, tasks))
    if all(isinstance(row, str) for row in told):
        raise ValueError("no video could be scored:\n" + "\n".join(str(row) for row in told))
    about = {name: row for found in told if not isinstance(found, str) for name, row in found[1].items()}
    scores = {
        str(file): f"skipped: {row}" if isinstance(row, str) else row[0] for file, row in zip(files, told, strict=True)
    }
    return {"videos": scores, "about": about}


def _files(given: Path) -> list[Path]:
    if not given.is_dir():
        return [given]
    files = sorted(path for path in given.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"video={given} is a folder without videos ({', '.join(SUFFIXES)})")
    return files


def _reference(reference: str | None, given: Path, file: Path) -> Path | None:
    if reference is None:
        return None
    path = Path(reference).expanduser()
    return path / file.name if path.is_dir() and given.is_dir() else path


def _scored(task: tuple[Any, Path, Path | None, str | None]) -> tuple[dict[str, Any], dict[str, Any]] | str:
    """Metrics and definitions of one video, or why it cannot be scored. Runs in a process of its own too."""
    try:
        return score(*task)
    except (ValueError, OSError) as error:
        return str(error)


def score(
    metrics: Mapping[str, Any] | Any, video: Path, reference: Path | None = None, audio: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics of one video by the meters of a node of `conf/metrics`, and the definition of each.

    Raises ValueError, naming the key, for files that are missing or hold nothing.
    """
    import numpy as np

    from liveavatar.media.audio import Voice, load_voice
    from liveavatar.media.steady import SteadyVideo
    from liveavatar.metrics.reference import Beside, ReferenceMeter
    from liveavatar.metrics.suite import Piece

    film, suite = SteadyVideo(video, "video"), make(metrics, "metrics")
    other = None if reference is None else SteadyVideo(reference, "reference")
    beside = None if other is None else Beside(iter(other))
    if beside is not None:
        suite.meters["reference"] = ReferenceMeter()
    found: dict[str, Any] = {"file/sound": "given" if audio else "own"}
    try:
        voice = load_voice(audio or video, "audio" if audio else "video")
    except ValueError as error:
        if audio:
            raise
        voice, found["file/sound"] = Voice(np.zeros(0, np.float32), 0), f"none ({error})"
    frames, start = iter(film), 0
    while piece := list(islice(frames, PIECE)):
        first, last = (round(number * voice.rate / film.fps) for number in (start, start + len(piece)))
        shown = Piece(np.stack(piece), voice.pcm[first:last], voice.rate, start, film.fps)
        suite.see(shown if beside is None else beside.along(shown))
        start += len(piece)
    if not start:
        raise ValueError(f"video={video} holds no frame that can be decoded. Export or download it again.")
    found |= {"file/frames": start, "file/fps": film.fps, "file/uneven_frames": film.uneven}
    if film.broken:
        found["file/broken"] = f"breaks off: {film.broken}"
    if other is not None and abs(other.fps - film.fps) > 0.01:
        found["file/reference_fps"] = other.fps
    return found | suite.values(), {name: about.row() for name, about in suite.abouts.items()}


SKIPPED = "skipped: "


def _table(told: Mapping[str, Any]) -> Any:
    """All that was measured; what was skipped is told below it (`_reasons`), where there is room for the reason."""
    from rich.table import Column, Table

    table = Table(Column("metric", no_wrap=True), *(Path(name).name for name in told["videos"]), "scale", "better")
    names = dict.fromkeys(key for row in told["videos"].values() if not isinstance(row, str) for key in row)
    for name in names:
        values = [row if isinstance(row, str) else row.get(name, "") for row in told["videos"].values()]
        if all(isinstance(value, str) and value.startswith(SKIPPED) for value in values):
            continue
        cells = ["skipped" if str(value).startswith(SKIPPED) else _said(value) for value in values]
        about = told["about"].get(name, {})
        table.add_row(name, *cells, about.get("scale", ""), about.get("direction", ""))
    return table


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _reasons(told: Mapping[str, Any]) -> list[str]:
    """Each reason for which something was skipped, once, with what it was."""
    found: dict[str, dict[str, None]] = {}
    for video, row in told["videos"].items():
        if isinstance(row, str):
            found.setdefault(row.removeprefix(SKIPPED), {})[Path(video).name] = None
            continue
        for name, value in row.items():
            if isinstance(value, str) and value.startswith(SKIPPED):
                found.setdefault(value.removeprefix(SKIPPED), {})[name] = None
    return [f"skipped {', '.join(names)}: {reason}" for reason, names in found.items()]


def _main(cfg: DictConfig) -> None:
    from rich.console import Console

    told = evaluate(cfg)
    if cfg.json is not None:
        text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
        Path(str(cfg.json)).expanduser().write_text(text, encoding="utf-8")
    console = Console()
    console.print(_table(told))
    for line in _reasons(told):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point of `python -m liveavatar.evaluate` and of the console script."""
    run_command("evaluate", _main)


if __name__ == "__main__":
    main()
