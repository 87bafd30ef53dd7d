"""The run directory: log, resolved configuration, metrics and what the run stood on. Only the output rank writes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch",
    "torchaudio",
    "lightning",
    "transformers",
    "diffusers",
    "av",
    "soxr",
    "hydra-core",
    "numpy",
    "wandb",
)


def make_run_directory(given: str | None) -> Path:
    """Create `output.dir`, or a new outputs/<date>/<time> when none is given.

    Raises ValueError where no file can be written.
    """
    try:
        if given is not None:
            path = Path(given).expanduser()
            path.mkdir(parents=True, exist_ok=True)
        else:
            path = _fresh(Path("outputs") / time.strftime("%Y-%m-%d") / time.strftime("%H-%M-%S"))
        probe = path / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"output.dir={given or 'outputs/…'} cannot be written to ({error.strerror or error}): name a folder of "
            "yours, for example output.dir=/tmp/avatar"
        ) from error
    return path.resolve()


def check_output_file(given: str, key: str) -> None:
    """Make sure that a file of that name can be made, and make its folder. Raises ValueError, naming `key`."""
    path = Path(given).expanduser()
    reason = "is a folder" if path.is_dir() else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.writable")
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error})"
    if reason:
        raise ValueError(f"{key}={given} {reason}: name a file in a folder of yours")


def _fresh(path: Path) -> Path:
    """That folder, or the first of its numbered siblings that does not exist yet."""
    for number in range(1000):
        candidate = path if number == 0 else path.with_name(f"{path.name}-{number}")
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            continue
        return candidate
    raise FileExistsError(17, "a thousand runs in one second", str(path))


class _Said(logging.Formatter):
    """The message alone: where an error came from belongs into the file."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage()


class _LogFile(logging.FileHandler):
    """A log that falls silent on a full disk, which the sinks tell, instead of covering the screen in tracebacks."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def start_log(path: Path | None) -> None:
    """Log to the terminal, and to a file where there is one; on other ranks (`path` None) errors alone are said."""
    root = logging.getLogger("liveavatar")
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.propagate = False
    root.setLevel(logging.INFO)
    screen = logging.StreamHandler()
    screen.setFormatter(_Said())
    screen.setLevel(logging.INFO if path else logging.ERROR)
    root.addHandler(screen)
    if path is not None:
        root.addHandler(_log_file(path))


@contextlib.contextmanager
def log_beside(path: Path | None) -> Iterator[None]:
    """Log to a file in `path` too, for one request of several; None changes nothing."""
    if path is None:
        yield
        return
    root, handler = logging.getLogger("liveavatar"), _log_file(path)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def _log_file(path: Path) -> _LogFile:
    file = _LogFile(path / "run.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return file


def stamp(device: str, threads: int, ranks: int) -> dict[str, Any]:
    """What a number was measured on: hardware, versions, threads."""
    found: dict[str, Any] = {
        "run/device": device,
        "run/cpu": _cpu_name(),
        "run/cores": os.cpu_count(),
        "run/host_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "run/threads": threads,
        "run/ranks": ranks,
        "run/python": platform.python_version(),
    }
    if device.startswith("cuda"):
        import torch

        found["run/gpu"] = torch.cuda.get_device_name()
    for library in LIBRARIES:
        try:
            found[f"run/{library}"] = version(library)
        except PackageNotFoundError:
            continue
    return found | git_state()


def git_state() -> dict[str, Any]:
    """The commit that this package is at, and whether files of it were changed; nothing for an installed one."""
    folder = Path(__file__).resolve().parent
    if not (folder.parent / ".git").exists():
        return {}

    def asked(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=5, check=True).stdout

    try:
        return {
            "run/git": asked("rev-parse", "HEAD").strip(),
            "run/git_changed": bool(asked("status", "--porcelain", "--untracked-files=no", ".").strip()),
        }
    except (OSError, subprocess.SubprocessError):
        return {}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """metrics.json: flat, `group/name` keys, replaced as a whole so that a reader never sees half of it."""
    _replace(path / "metrics.json", metrics)


def write_about(path: Path, abouts: Mapping[str, Any]) -> None:
    """about.json: what each metric of the meters means, its scale, direction and requirements; none without meters."""
    if abouts:
        _replace(path / "about.json", {name: about.row() for name, about in abouts.items()})


def _replace(target: Path, content: Mapping[str, Any]) -> None:
    draft = target.with_suffix(".json.part")
    draft.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(target)
