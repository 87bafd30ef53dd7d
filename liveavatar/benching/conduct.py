"""Conducting a bench: each row in fresh processes, repeats interleaved, order shuffled, results kept one by one.

Loads no torch: what a row does to its process, or the process to itself, stays there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liveavatar.benching.rows import Row

log = logging.getLogger(__name__)

DONE = ("ok", "oom")
"""Outcomes that are results; anything else is tried again by `resume`."""

WORKER = ("-m", "liveavatar.benching.worker")


@dataclass(frozen=True)
class Turn:
    """One repeat of a row."""

    row: Row
    repeat: int

    @property
    def stem(self) -> str:
        return f"{self.row.name.replace('@', '_at_').replace(',', '_')}.{self.repeat}"


def turns(rows: Sequence[Row], repeats: int, seed: int) -> list[Turn]:
    """Every repeat of every row: repeat by repeat, each in an order of its own, so that what drifts hits all alike."""
    found = []
    for repeat in range(repeats):
        due = [Turn(row, repeat) for row in rows if repeat < (row.repeats or repeats)]
        random.Random(f"{seed}/{repeat}").shuffle(due)
        found += due
    return found


class Conductor:
    """Runs turns and keeps their outcomes in `folder`/rows; those that are there already are not run again.

    `budget_s` bounds the whole: no turn begins after it, and the rest is for the next call. `threads` is what a process
    computes with. Use as a context: leaving it ends what still runs.
    """

    def __init__(
        self, folder: Path, threads: int, budget_s: float | None = None, worker: Sequence[str] = WORKER
    ) -> None:
        self.rows, self.latents = folder / "rows", folder / "latents"
        for path in (self.rows, self.latents):
            path.mkdir(parents=True, exist_ok=True)
        self.threads, self.budget_s, self.worker = threads, budget_s, tuple(worker)
        self.began = time.monotonic()
        self._running: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Conductor:
        return self

    def __exit__(self, *ended: object) -> None:
        self._end()

    def kept(self, turn: Turn) -> dict[str, Any] | None:
        """The outcome of a turn that was run before; None where there is none that can be read."""
        try:
            found = json.loads((self.rows / f"{turn.stem}.json").read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and "status" in found else None

    def play(self, turns: Sequence[Turn]) -> Iterator[tuple[Turn, dict[str, Any] | None]]:
        """Each turn with its outcome; None for those that the budget has left undone."""
        for number, turn in enumerate(turns, 1):
            kept = self.kept(turn)
            if kept is not None and kept["status"] in DONE:
                yield turn, kept
                continue
            if self.budget_s is not None and time.monotonic() - self.began > self.budget_s:
                yield turn, None
                continue
            began = time.monotonic()
            outcome = self.run(turn)
            outcome |= {"wall_s": time.monotonic() - began, "load": os.getloadavg()[0]}
            draft = self.rows / f"{turn.stem}.json.part"
            draft.write_text(json.dumps({"row": turn.row.name, "repeat": turn.repeat, **outcome}, indent=1) + "\n")
            draft.replace(self.rows / f"{turn.stem}.json")
            reason = f": {outcome['reason']}" if outcome["reason"] else ""
            log.info(
                "%d/%d %s, repeat %d: %s in %.1f s%s",
                number, len(turns), turn.row.name, turn.repeat + 1, outcome["status"], outcome["wall_s"], reason,
            )  # fmt: skip
            yield turn, outcome

    def run(self, turn: Turn) -> dict[str, Any]:
        """One turn in its own processes; whatever becomes of them is its outcome."""
        job = turn.row.job | {"threads": self.threads, "latents": None}
        if job["kind"] == "stream" and job["way"] != "diagonal_stage":
            job["latents"] = str(self.latents / f"{turn.stem}.safetensors")
        ranks = int(job.get("ranks", 1))
        with tempfile.TemporaryDirectory() as folder:
            told, result = Path(folder, "job.json"), Path(folder, "result.json")
            told.write_text(json.dumps(job))
            command = [sys.executable, *self.worker, str(told), str(result)]
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
            said = Path(folder, "said")
            with said.open("w") as file:
                self._running = [
                    subprocess.Popen(
                        command, env=self._world(rank, ranks, place), stdout=file, stderr=file, text=True,
                        start_new_session=True,
                    )
                    for rank in range(ranks)
                ]  # fmt: skip
            late = self._wait(turn.row.timeout_s)
            codes = [process.returncode for process in self._running]
            self._running = []
            return _outcome(result, codes, said.read_text(errors="replace"), turn.row.timeout_s if late else None)

    def _world(self, rank: int, ranks: int, place: dict[str, str]) -> dict[str, str]:
        """The environment of a rank, as torchrun would set it; allocators alike for everybody."""
        mine = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        threads = {"OMP_NUM_THREADS": str(self.threads), "TORCHELASTIC_RUN_ID": "bench"}
        allocator = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
        return {**allocator, **os.environ, **place, **threads, **{name: str(value) for name, value in mine.items()}}

    def _wait(self, timeout_s: float) -> bool:
        """Until all have ended or one has failed; whether it took too long."""
        end = time.monotonic() + timeout_s
        while None in (codes := [process.poll() for process in self._running]):
            failed = any(codes)
            if failed or time.monotonic() > end:
                late = not failed
                self._end()
                return late
            time.sleep(0.02)
        return False

    def _end(self) -> None:
        for process in self._running:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        for process in self._running:
            process.wait()


def _outcome(result: Path, codes: Sequence[int | None], said: str, late_s: float | None) -> dict[str, Any]:
    """What a row's processes have left: their own account, or what is known of their end."""
    if result.exists():
        return json.loads(result.read_text())
    if late_s is not None:
        reason = f"did not end within {late_s:g} s and was ended"
    else:
        code = next((code for code in codes if code), 0) or 0
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        last = (said.strip().splitlines() or ["nothing was said"])[-1]
        reason = f"the process ended {how}: {last[:300]}"
    return {"status": "failed", "reason": reason, "found": {}, "trace": said[-2000:]}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
