"""Weights & Biases, if it is asked for: each piece as it comes, the whole at the end. Nothing of it can stop a run."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger(__name__)

MODES = ("offline", "online")
LARGEST_VIDEO = 50_000_000
GB = 1e9


class Board(Protocol):
    """Where the numbers of a run are shown beside those of others."""

    def start(self, directory: Path, config: Mapping[str, Any], about: Mapping[str, Any], group: str | None) -> None:
        """A run begins in `directory`; `about` says what it stands on: versions, hardware, strategy."""

    def step(self, number: int, line: Mapping[str, Any]) -> None:
        """What was measured of a piece of video."""

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """The run is over, and its files are written."""


class NoBoard:
    """Nobody is told anything."""

    def start(self, directory: Path, config: Mapping[str, Any], about: Mapping[str, Any], group: str | None) -> None:
        """Nothing to open."""

    def step(self, number: int, line: Mapping[str, Any]) -> None:
        """Nothing to keep."""

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Nothing to close."""


@dataclass
class WandbBoard:
    """A W&B run through Lightning's logger; whatever it raises is said once in the log, and it is left alone after.

    Kept of a run: the resolved configuration, versions, hardware and git state; every line of metrics.jsonl; the
    metrics as summary; the memory timeline and the seconds of each piece (a histogram); the video.

    Args:
        mode: `offline` writes files below the run directory (`wandb sync` sends them later); `online` sends.
        project, group, job_type, name: as in W&B; see conf/logger/wandb.yaml for what null means.
        video: whether the video is sent too.
        timeout_s: the longest that a server may keep the run waiting, at its start and again at its end.

    Raises:
        ValueError: for an unknown mode, and where wandb is not installed.
    """

    mode: str = "offline"
    project: str = "liveavatar"
    group: str | None = None
    job_type: str | None = None
    name: str | None = None
    video: bool = True
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"logger.mode={self.mode!r} is unknown; write {' or '.join(MODES)}, or logger=none")
        if find_spec("wandb") is None:
            raise ValueError(
                "logger=wandb, but wandb is not installed: pip install 'liveavatar[train]', or logger=none"
            )
        self._logger: Any = None
        self._directory = Path()
        self._seconds: list[float] = []

    def start(self, directory: Path, config: Mapping[str, Any], about: Mapping[str, Any], group: str | None) -> None:
        self._directory, self._seconds = directory, []
        named = {
            "group": self.group or os.environ.get("WANDB_RUN_GROUP") or group,
            "job_type": self.job_type or str(about.get("strategy", "infer")),
            "name": self.name or directory.name,
        }
        kept = {**config, "about": {key: value for key, value in about.items() if not key.startswith("speed/")}}
        with self._harmless("could not begin"):
            self._logger = self._opened(named, kept)

    def step(self, number: int, line: Mapping[str, Any]) -> None:
        if self._logger is None:
            return
        self._seconds.append(line.get("speed/denoise_s", 0.0) + line.get("speed/decode_s", 0.0))
        with self._harmless("could not take a line"):
            self._logger.log_metrics(dict(line), step=number)

    def finish(self, metrics: Mapping[str, Any]) -> None:
        if self._logger is None:
            return
        run = self._logger.experiment
        with self._harmless("could not keep the whole of a run", leave=False):
            run.summary.update(dict(metrics))
            run.log(self._pictures())
        with self._harmless("could not end"):
            run.finish(exit_code=0 if metrics.get("run/finished") else 1)
        self._logger = None

    def _opened(self, named: dict[str, Any], config: dict[str, Any]) -> Any:
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        given = {"project": self.project, "dir": str(self._directory), "config": config, **named}
        given["reinit"] = "create_new"  # several runs in one process, as in a list of requests, are several here

        def begin(mode: str) -> Any:
            limits = wandb.Settings(
                silent=True, console="off", init_timeout=self.timeout_s, finish_timeout=self.timeout_s,
                finish_timeout_raises=False, login_timeout=self.timeout_s,
            )  # fmt: skip
            return wandb.init(mode=mode, settings=limits, **given)  # type: ignore[arg-type]

        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            run = begin(self.mode)
        except Exception as error:
            if self.mode == "offline":
                raise
            log.warning("logger.mode=online: %s. The run is kept offline; `wandb sync` sends it later.", _short(error))
            run = begin("offline")
        return WandbLogger(experiment=run)

    def _pictures(self) -> dict[str, Any]:
        """What is more than a number: the seconds of each piece, memory over time, the video."""
        import wandb

        found: dict[str, Any] = {}
        if self._seconds:
            found["speed/piece_s"] = wandb.Histogram(self._seconds)  # type: ignore[arg-type]
        if (table := memory_table(self._directory / "memory.json")) is not None:
            found["memory/timeline"] = wandb.Table(columns=[*table[0]], data=table[1])
        if (drawn := self._directory / "memory.png").is_file():
            found["memory/figure"] = wandb.Image(str(drawn))
        video = self._directory / "avatar.mp4"
        if self.video and video.is_file() and 0 < video.stat().st_size < LARGEST_VIDEO:
            found["video"] = wandb.Video(str(video), format="mp4")
        return found

    @contextmanager
    def _harmless(self, what: str, leave: bool = True) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  whatever a logger raises is its own affair
            log.warning("W&B %s%s: %s", what, ", and is left out from here on" if leave else "", _short(error))
            if leave:
                self._logger = None


def memory_table(path: Path, most: int = 300) -> tuple[list[str], list[list[Any]]] | None:
    """Columns and at most about `most` rows of the timeline in a memory.json, in GB; None where there is none."""
    try:
        timeline = json.loads(path.read_text(encoding="utf-8"))["timeline"]
        columns = [name for name in ("seconds", "phase", "host", "allocated", "reserved") if name in timeline]
        count = len(timeline["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sized = {"host", "allocated", "reserved"}
    rows = [
        [timeline[name][i] / GB if name in sized and timeline[name][i] is not None else timeline[name][i]
         for name in columns]
        for i in range(0, count, max(1, count // most))
    ]  # fmt: skip
    return columns, rows


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
