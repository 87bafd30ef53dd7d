"""Lists of requests: one JSON object a line, each checked by itself before anything is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from liveavatar.config import kept, literal
from liveavatar.intake import check_request
from liveavatar.settings import make_request

BESIDE = ("seed", "name")
"""Keys of a line that are not in the `request` node."""

ONLY_HOW = ("output", "requests", "fabric", "parallel", "strategy", "sink", "logger")
"""Parts of a configuration that say how and where to work, and change no picture."""


@dataclass(frozen=True)
class Job:
    """One line of a list. `name` is its folder; `cost` grows with its work; `refused` says why it cannot run."""

    line: int
    name: str
    asked: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    cost: float = 0.0
    refused: str | None = None
    done: bool = False

    def config(self, cfg: DictConfig, folder: Path) -> DictConfig:
        """The configuration of this request alone, in its own folder below `folder`."""
        said = {key: literal(value) if isinstance(value, str) else value for key, value in self.asked.items()}
        own: dict[str, Any] = {"request": {key: value for key, value in said.items() if key not in BESIDE}}
        own |= {"requests": None, "output": {"dir": literal(str(folder / self.name))}}
        if "seed" in said:
            own["seed"] = said["seed"]
        if cfg.output.latents is not None:
            own["output"]["latents"] = literal(str(folder / self.name / cfg.output.latents))
        made = OmegaConf.merge(cfg, own)
        assert isinstance(made, DictConfig)
        return made


def read_jobs(cfg: DictConfig) -> list[Job]:
    """The requests of `cfg.requests`; lines that cannot be read are among them, refused.

    Raises ValueError for a file that cannot be read or holds nothing, and for an output that all would share.
    """
    path = Path(cfg.requests).expanduser()
    _check_output(cfg)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(
            f"requests={cfg.requests} cannot be read ({reason}): name a file with one JSON object a line, such as "
            '{"image": "me.jpg", "audio": "hello.wav", "prompt": "…"}'
        ) from error
    jobs = [_job(text, number, cfg) for number, text in enumerate(lines, 1) if text.strip()]
    if not jobs:
        raise ValueError(f"requests={cfg.requests} holds no request: write one JSON object a line")
    return [replace(job, refused=f"{path}, line {job.line}: {job.refused}") if job.refused else job for job in jobs]


def checked(job: Job, cfg: DictConfig, folder: Path) -> Job:
    """A job with all that it names read once, or with the reason why it is refused."""
    if job.refused:
        return job
    try:
        request = make_request(job.config(cfg, folder))
        seconds = check_request(request)
    except (ValueError, OSError) as error:
        return replace(job, refused=f"{Path(cfg.requests).expanduser()}, line {job.line}: {error}")
    return replace(job, seconds=seconds, cost=seconds * request.size)


def finished_before(job: Job, cfg: DictConfig, folder: Path) -> bool:
    """Whether the folder of this job holds its finished video, made with the same request, model and sampling."""
    here = folder / job.name
    try:
        done = json.loads((here / "metrics.json").read_text(encoding="utf-8"))["run/finished"]
        before = OmegaConf.load(here / "config.yaml")
    except (OSError, ValueError, KeyError):
        return False
    return bool(done) and _pictured(before) == _pictured(OmegaConf.create(kept(job.config(cfg, folder))))


def deal(jobs: Sequence[Job], ranks: int) -> list[list[Job]]:
    """Who does what: the longest first, each to the rank that has least to do so far. Every rank gets the same answer.

    Ranks in lock-step then end at about the same time, and few passes go to waste.
    """
    hands: list[list[Job]] = [[] for _ in range(ranks)]
    for job in sorted(jobs, key=lambda job: (-job.cost, job.line)):
        min(hands, key=lambda hand: sum(held.cost for held in hand)).append(job)
    return hands


def _job(text: str, number: int, cfg: DictConfig) -> Job:
    """One line, read as far as it can be."""
    plain = Job(number, f"{number:04d}-request")
    try:
        asked = json.loads(text)
    except json.JSONDecodeError as error:
        return replace(plain, refused=f"it is no JSON ({error.msg}, column {error.colno})")
    if not isinstance(asked, dict):
        return replace(plain, refused='it is no JSON object: write {"image": …, "audio": …}')
    known = [str(key) for key in cfg.request]
    for key, value in asked.items():
        if key not in (*known, *BESIDE):
            return replace(plain, refused=f"{key!r} is no key of a request; choose from {', '.join([*known, *BESIDE])}")
        if isinstance(value, (dict, list)):
            return replace(plain, refused=f"request.{key} must be text, a number or null, and is {json.dumps(value)}")
    name = asked.get("name") or Path(str(asked.get("image") or cfg.request.image)).stem
    return Job(number, f"{number:04d}-{_slug(str(name))}", asked)


def _slug(name: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60] or "request"


def _check_output(cfg: DictConfig) -> None:
    """Every request needs files of its own."""
    latents = cfg.output.latents
    if latents is not None and Path(latents).name != latents:
        raise ValueError(
            f"output.latents={latents}: each request of a list keeps its latents in its own folder, so give a file "
            f"name alone, as in output.latents={Path(latents).name or 'latents.safetensors'}"
        )
    places = [Job(0, name).config(cfg, Path("a")).sink.get("path") for name in ("b", "c")]
    if places[0] is not None and places[0] == places[1]:
        raise ValueError(
            f"sink.path={places[0]} would be written by every request of the list: leave it out, and each writes into "
            "its own folder below output.dir"
        )


def _pictured(cfg: Any) -> dict[Any, Any]:
    """The part of a configuration that decides what the video looks like."""
    found = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(found, dict)
    return {key: value for key, value in found.items() if key not in ONLY_HOW}
