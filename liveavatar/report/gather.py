"""A folder of run directories as rows, each with what was varied; what cannot be read is listed with its reason."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)

APART = ("output", "hydra", "about", "logger", "profile")
"""Parts of a configuration in which runs differ without differing."""

LONGEST_REASON = 200
PEAKS = ("memory/run/allocated", "memory/run/host")
FPS = "speed/fps_e2e"
QUALITY = ("quality/", "sync/", "identity/", "drift/", "motion/", "reference/")
LOWER_IS_BETTER = (
    "flicker",
    "drift",
    "delta_e",
    "_de",
    "lpips",
    "fid",
    "fvd",
    "brisque",
    "sync_d",
    "error",
    "distance",
)


@dataclass
class Row:
    """A finished run: its folder's name, what makes it differ from the others, its metrics and its lines."""

    name: str
    folder: Path
    metrics: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    varied: dict[str, Any] = field(default_factory=dict)
    directions: dict[str, str] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def label(self) -> str:
        """What was varied, in a few words."""
        return ", ".join(_words(key, value) for key, value in self.varied.items()) or self.name

    @property
    def strategy(self) -> str:
        return str(self.metrics.get("strategy", "unknown"))

    def number(self, key: str) -> float | None:
        """A metric, where it is a number."""
        value = self.metrics.get(key)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    @property
    def peak(self) -> float | None:
        """Bytes: the device's peak where it has memory of its own, else what tensors took, else the process."""
        return next((found for key in PEAKS if (found := self.number(key)) is not None), None)


@dataclass
class Gathered:
    """All runs of a folder: `rows` that are whole, and `broken` ones by name, with the reason."""

    folder: Path
    rows: list[Row] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    def quality(self, asked: str | None = None) -> str | None:
        """The metric of quality to show: the one asked for, else the first that every run has, else that any has.

        Raises ValueError for one that no run has.
        """
        have = [{key for key in row.metrics if row.number(key) is not None} for row in self.rows]
        known = sorted(set().union(*have)) if have else []
        if asked is not None:
            if asked not in known:
                raise ValueError(f"quality={asked}: no run has it; there are {', '.join(known) or 'no metrics'}")
            return asked
        judged = [key for key in known if direction(key, self.rows) != "none"]
        named = [key for group in QUALITY for key in judged if key.startswith(group)]
        everywhere = [key for key in named if all(key in keys for keys in have)]
        return next(iter(everywhere or named), None)


def direction(key: str, rows: Sequence[Row]) -> str:
    """Which way a metric is better: `higher`, `lower`, or `none` for a description.

    As the metric itself declares in the about.json of its run; of what no run declares, its name is asked.
    """
    declared = next((row.directions[key] for row in rows if key in row.directions), None)
    return declared or ("lower" if any(word in key for word in LOWER_IS_BETTER) else "higher")


def gather(folder: str | Path) -> Gathered:
    """Read every run directory below `folder`, itself included.

    A run directory is one with metrics.json, config.yaml, words.json (of a sweep) or run.log. Folders of a sweep or
    of a list of requests, which hold runs, are none themselves. Raises ValueError where there is no run at all.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"runs={folder} is no folder: name one that holds run directories, as outputs or a sweep's")
    found = Gathered(root.resolve())
    for place in _places(found.folder):
        name = str(place.relative_to(found.folder)) if place != found.folder else place.name
        try:
            found.rows.append(_read(place, name))
        except _Broken as broken:
            found.broken[name] = str(broken)[:LONGEST_REASON]
    if not found.rows and not found.broken:
        raise ValueError(f"runs={folder} holds no run: python -m liveavatar.infer output.dir={folder}/one makes one")
    _tell_apart(found.rows)
    return found


class _Broken(Exception):
    """Why a run directory is not reported."""


def _places(root: Path) -> list[Path]:
    marks = ("metrics.json", "config.yaml", "words.json", "run.log")
    places = {file.parent for mark in marks for file in root.rglob(mark)}
    hold = {"sweep.json", "requests.jsonl"}
    return sorted(p for p in places if not any((p / name).exists() for name in hold) and "wandb" not in p.parts)


def _read(place: Path, name: str) -> Row:
    from liveavatar.journal import read_journal

    file = place / "metrics.json"
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _Broken("it has not come to its end: there is no metrics.json") from None
    except (OSError, ValueError) as error:
        raise _Broken(f"metrics.json cannot be read: {error}") from None
    if not isinstance(metrics, dict):
        raise _Broken("metrics.json holds no named values")
    if metrics.get("run/error"):
        raise _Broken(str(metrics["run/error"]).splitlines()[0])
    if metrics.get("run/finished") is not True:
        raise _Broken("it was cut short: run/finished is not true")
    journal = place / "metrics.jsonl"
    try:
        lines = read_journal(journal) if journal.is_file() else []
    except OSError as error:
        log.warning("%s: %s", journal, error)
        lines = []
    return Row(name, place, metrics, _flat(_config(place)), directions=_directions(place), lines=lines)


def _directions(place: Path) -> dict[str, str]:
    try:
        told = json.loads((place / "about.json").read_text(encoding="utf-8"))
        return {str(name): str(row["direction"]) for name, row in told.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # of a run without meters, or an older one


def _config(place: Path) -> dict[str, Any]:
    try:
        config = OmegaConf.load(place / "config.yaml")
        plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else {}
    except Exception as error:  # noqa: BLE001  an unreadable configuration costs the labels, not the run
        log.warning("%s/config.yaml cannot be read, so its run goes by its name: %s", place, error)
        return {}
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node:
        return {
            name: value
            for key, inner in node.items()
            for name, value in _flat(inner, f"{path}.{key}" if path else str(key)).items()
        }
    return {path: node} if path else {}


def _tell_apart(rows: list[Row]) -> None:
    """Give each row the values in which the runs differ."""
    keys = dict.fromkeys(key for row in rows for key in row.config)
    keys = [key for key in keys if key.partition(".")[0] not in APART and key != "sink.path"]
    differ = [key for key in keys if len({repr(row.config.get(key)) for row in rows}) > 1]
    if any(key == "strategy._target_" for key in differ):  # options that come with a strategy say nothing by themselves
        differ = [key for key in differ if not key.startswith("strategy.") or _differs_within(key, rows)]
    for row in rows:
        row.varied = {key: row.config[key] for key in differ if key in row.config}


def _differs_within(key: str, rows: list[Row]) -> bool:
    if key == "strategy._target_":
        return True
    by_kind: dict[Any, set[str]] = {}
    for row in rows:
        by_kind.setdefault(row.config.get("strategy._target_"), set()).add(repr(row.config.get(key)))
    return any(len(values) > 1 for values in by_kind.values())


def _words(key: str, value: Any) -> str:
    if key.endswith("_target_"):
        name = str(value).rsplit(".", 1)[-1]
        return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
    return f"{key.rsplit('.', 1)[-1]}={value}"
