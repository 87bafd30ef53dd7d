"""Many requests on weights that load once: one after another, or each rank on requests of its own."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from liveavatar.assemble import Loaded, Run, load
from liveavatar.choice import Chosen, choose
from liveavatar.config import first_rank, kept
from liveavatar.listing import Job, checked, deal, finished_before, read_jobs
from liveavatar.settings import make_request
from liveavatar.strategies.faults import RankLost
from liveavatar.tracking import log_beside, make_run_directory, start_log, write_metrics

log = logging.getLogger(__name__)

TOLD = ("speed/rtf", "speed/fps_e2e", "speed/ttff_s", "speed/total_s", "memory/run/host", "memory/run/allocated")
"""Metrics of a request that the summary repeats."""


def run_requests(cfg: DictConfig) -> dict[str, Any]:
    """Run all requests of `cfg.requests` and return the metrics of the whole.

    Each request leaves its files in `output.dir/<line>-<name>/`; `requests.jsonl` and `metrics.json` beside those
    folders tell how each of them ended. One that fails does not stop the others. Raises ValueError for a list that
    cannot be read, or of which no request can be met.
    """
    start_log(None)
    jobs = read_jobs(cfg) if first_rank() else []
    chosen, folder = choose(cfg), None
    if first_rank():
        jobs, folder = _examined(jobs, cfg)
    cfg = chosen.cfg
    chosen.launch()
    strategy = chosen.strategy
    jobs, folder = strategy.broadcast((jobs, folder))
    start_log(folder if strategy.is_output_rank else None)
    for job in (job for job in jobs if job.refused and strategy.is_output_rank):
        log.error("refused: %s", job.refused)
    batch = Batch(cfg, chosen, jobs, folder)
    try:
        batch.work()
    finally:
        batch.close()
    return batch.metrics


def _examined(jobs: list[Job], cfg: DictConfig) -> tuple[list[Job], Path]:
    """All jobs checked, and the folder for them. Raises ValueError where none of them can be met."""
    given = cfg.output.dir
    place = Path(given).expanduser().resolve() if given is not None else Path()
    jobs = [checked(job, cfg, place) for job in jobs]
    refused = [job.refused for job in jobs if job.refused]
    if len(refused) == len(jobs):
        raise ValueError("no request of the list can be met:\n" + "\n".join(refused))
    folder = make_run_directory(given)
    if cfg.output.resume:
        jobs = [replace(job, done=not job.refused and finished_before(job, cfg, folder)) for job in jobs]
    for job in jobs:
        if not job.done:
            (folder / job.name / "metrics.json").unlink(missing_ok=True)  # of an earlier attempt
    return jobs, folder


@dataclass
class Outcome:
    """How a request ended: `status` is finished, failed, refused, skipped or unknown."""

    job: Job
    status: str
    rank: int | None = None
    error: str | None = None
    metrics: dict[str, Any] | None = None

    def row(self, folder: Path) -> dict[str, Any]:
        """A line of requests.jsonl."""
        found: dict[str, Any] = {"line": self.job.line, "name": self.job.name, "status": self.status}
        found |= {"directory": str(folder / self.job.name), "seconds": self.job.seconds, "rank": self.rank}
        if self.error is not None:
            found["error"] = self.error
        return found | {key: self.metrics[key] for key in TOLD if self.metrics and key in self.metrics}


class Batch:
    """The requests of a list on this rank. `folder` is where all of them leave their files."""

    def __init__(self, cfg: DictConfig, chosen: Chosen, jobs: Sequence[Job], folder: Path) -> None:
        self.cfg, self.chosen, self.folder, self.strategy = cfg, chosen, folder, chosen.strategy
        self.jobs = list(jobs)
        self.rank: int = chosen.fabric.global_rank
        self.apart = chosen.ranks == "requests" and chosen.fabric.world_size > 1
        self.writes = self.apart or self.strategy.is_output_rank
        self.outcomes: dict[int, Outcome] = {}
        self.metrics: dict[str, Any] = {}
        self.began = time.perf_counter()
        self.whole = False
        for job in self.jobs:
            if job.refused:
                self.outcomes[job.line] = Outcome(job, "refused", error=job.refused)
            elif job.done:
                self.outcomes[job.line] = Outcome(job, "skipped")

    def work(self) -> None:
        """Load, run what falls to this rank, and learn how the others fared."""
        due = [job for job in self.jobs if job.line not in self.outcomes]
        world = self.chosen.fabric.world_size
        mine = deal(due, world)[self.rank] if self.apart else due
        if due:
            loaded = load(self.cfg, self.chosen, self.folder if self.strategy.is_output_rank else None)
            self.metrics |= loaded.metrics
            self._tell_division(due, world)
            for number, job in enumerate(mine, 1):
                log.info("request %d of %d: %s (%.1f s)", number, len(mine), job.name, job.seconds)
                self.outcomes[job.line] = self._one(job, loaded)
            with self.strategy.watched():
                if self.apart:
                    self.strategy.linger(loaded.session.parts.dit)
        with self.strategy.watched():
            for outcomes in self.strategy.collect(self.outcomes):
                self.outcomes |= {line: outcome for line, outcome in outcomes.items() if line not in self.outcomes}
        self.whole = True

    def close(self) -> None:
        """Write the summary, however it ended, and let the weights go."""
        if self.strategy.is_output_rank:
            self._summarise()
        else:
            self.metrics["requests/failed"] = 0  # one rank's exit code speaks for all
        self.strategy.release()

    def _tell_division(self, due: Sequence[Job], world: int) -> None:
        if self.apart:
            counts = [len(hand) for hand in deal(due, world)]
            log.info("parallel.ranks=requests: %d requests, %s to a rank", len(due), " + ".join(map(str, counts)))
        else:
            log.info("parallel.ranks=same: %d requests, one after another", len(due))

    def _one(self, job: Job, loaded: Loaded) -> Outcome:
        """One request, from its words to its files. What is wrong with it is its own affair."""
        directory = self.folder / job.name if self.writes else None
        metrics: dict[str, Any] = {}
        with ExitStack() as stack:
            run, error = self._opened(job, loaded, directory, stack)
            error = self._agreed(run, error)
            if run is not None:
                metrics = run.metrics
                error = error or self._shown(run)
            if error is not None:
                log.error("request %s failed: %s", job.name, error)
                metrics |= {"run/finished": False, "run/error": str(error)}
                if directory is not None:
                    with suppress(OSError):  # the failure under way is the one to tell
                        write_metrics(directory, metrics)
        return Outcome(job, "failed" if error else "finished", self.rank, str(error) if error else None, metrics)

    def _opened(
        self, job: Job, loaded: Loaded, directory: Path | None, stack: ExitStack
    ) -> tuple[Run | None, Exception | None]:
        """A request with its folder made, read, encoded, and its sinks open; or why it cannot be."""
        try:
            config = job.config(self.cfg, self.folder)
            if directory is not None:
                directory.mkdir(parents=True, exist_ok=True)
                (directory / "config.yaml").write_text(kept(config), encoding="utf-8")
            stack.enter_context(log_beside(directory))
            run = loaded.run(config, make_request(config), directory)
            with self.strategy.watched():
                run.open()
        except RankLost:
            raise
        except Exception as failure:  # noqa: BLE001  one bad request does not stop the others
            return None, _bare(failure)
        return run, None

    def _agreed(self, run: Run | None, error: Exception | None) -> Exception | None:
        """Where ranks work together, they go on with a request only if all of them can."""
        if self.apart:
            return error
        with self.strategy.watched():
            said = self.strategy.collect(None if error is None else str(error))
        elsewhere = next(((rank, words) for rank, words in enumerate(said) if words is not None), None)
        if error is None and elsewhere is not None:
            if run is not None:
                run.abandon()
            return ValueError(f"rank {elsewhere[0]}: {elsewhere[1]}")
        return error

    def _shown(self, run: Run) -> Exception | None:
        """Denoise and show. Where ranks work together the others count on this one to the end of the request."""
        try:
            for _ in run.chunks():
                pass
        except RankLost:
            raise
        except Exception as failure:  # noqa: BLE001  one bad request does not stop the others
            if not self.apart and self.chosen.fabric.world_size > 1:
                run.compute_rest()
            return _bare(failure)
        return None

    def _summarise(self) -> None:
        rows = [self._outcome(job) for job in self.jobs]
        lines = [json.dumps(row.row(self.folder), ensure_ascii=False) for row in rows]
        seconds = sum(row.job.seconds for row in rows if row.status == "finished")
        elapsed = time.perf_counter() - self.began
        self.metrics |= {f"requests/{word}": self._count(word) for word in ("finished", "skipped", "refused")}
        self.metrics |= {
            "requests/total": len(rows),
            "requests/failed": self._count("failed", "refused", "unknown"),
            "requests/video_s": seconds,
            "requests/elapsed_s": elapsed,
            "requests/video_s_per_s": seconds / max(elapsed, 1e-9),
            "run/finished": self.whole and self._count("failed", "refused", "unknown") == 0,
            "run/division": "requests" if self.apart else "same",
        }
        try:
            (self.folder / "requests.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            write_metrics(self.folder, self.metrics)
        except OSError as error:
            log.error("output.dir: the summary cannot be written: %s", error)
        log.info("%s\n%s: requests.jsonl, metrics.json", table(rows), self.folder)

    def _outcome(self, job: Job) -> Outcome:
        """How a job ended, as far as this rank knows."""
        if job.line in self.outcomes:
            return self.outcomes[job.line]
        try:  # the rank that did it could not say so
            found = json.loads((self.folder / job.name / "metrics.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return Outcome(job, "unknown", error="the run ended before this request")
        return Outcome(job, "finished" if found.get("run/finished") else "unknown", metrics=found)

    def _count(self, *words: str) -> int:
        return sum(self._outcome(job).status in words for job in self.jobs)


def _bare(failure: Exception) -> Exception:
    """A failure without the frames that would keep its caches alive."""
    failure.__context__ = failure.__cause__ = None
    return failure.with_traceback(None)


def table(rows: Sequence[Outcome]) -> str:
    """All requests, a line each."""
    width = max(len(row.job.name) for row in rows)
    lines = []
    for row in rows:
        found = row.metrics or {}
        rate = f"  {found['speed/rtf']:.2f} s per second" if row.status == "finished" and "speed/rtf" in found else ""
        why = f"  {row.error.splitlines()[0][:90]}" if row.error else ""
        lines.append(f"{row.job.name:<{width}}  {row.status:<8}  {row.job.seconds:5.1f} s{rate}{why}")
    return "\n".join(lines)
