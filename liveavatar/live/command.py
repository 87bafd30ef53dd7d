"""Standard input to video: `python -m liveavatar.infer request.audio=-`."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any, BinaryIO

from omegaconf import DictConfig, OmegaConf

from liveavatar.choice import Chosen
from liveavatar.config import first_rank, kept, literal
from liveavatar.live.avatar import Avatar, open_avatar
from liveavatar.live.feeds import RawFeed
from liveavatar.media.image import load_image
from liveavatar.metrics.speed import SpeedMeter
from liveavatar.run import ESSENTIAL, fanout, sinks_of
from liveavatar.tracking import check_output_file, make_run_directory, start_log, write_metrics

log = logging.getLogger(__name__)


def run_live(cfg: DictConfig, stream: BinaryIO) -> dict[str, Any]:
    """Sound from a stream, as it comes, into the files of a run; returns its metrics.

    Raises ValueError, naming the key, for what cannot work, before a model is loaded, and OSError when the output
    cannot be written any more; what was written until then stays.
    """
    start_log(None)
    _check(cfg)
    place: list[Path] = []

    def started(chosen: Chosen) -> Path | None:
        place[:] = [make_run_directory(cfg.output.dir)] if chosen.strategy.is_output_rank else []
        start_log(place[0] if place else None)
        return place[0] if place else None

    with open_avatar(cfg, started) as avatar:
        directory = place[0]
        cfg = OmegaConf.merge(avatar.cfg, {"output": {"dir": literal(str(directory))}})  # type: ignore[assignment]
        (directory / "config.yaml").write_text(kept(cfg), encoding="utf-8")
        metrics = _shown(avatar, cfg, stream, directory)
    log.info("%s: %s", directory, ", ".join(sorted(path.name for path in directory.iterdir())))
    return metrics


def _check(cfg: DictConfig) -> None:
    for key in ("pose", "masks"):
        if cfg.request[key]:
            raise ValueError(f"request.{key} is for recordings, and request.audio=- is live: leave request.{key} out")
    if not first_rank():
        return
    load_image(cfg.request.image)
    if cfg.output.latents is not None:
        check_output_file(cfg.output.latents, "output.latents")
    if cfg.output.dir is not None:
        make_run_directory(cfg.output.dir)


def _shown(avatar: Avatar, cfg: DictConfig, stream: BinaryIO, directory: Path) -> dict[str, Any]:
    """Make and keep chunks until the stream ends. However it ends, what is known of it is written."""
    metrics, speed = dict(avatar.loaded.metrics), SpeedMeter()
    held = 0
    speed.begin()
    with avatar.session() as session:
        sinks = fanout(sinks_of(cfg, speed), lambda: f"{session.stats.queued_s:.1f} s of sound wait")
        try:
            sinks.open(session.info)
            feed = RawFeed(session, stream, avatar.settings.rate, cfg.request.max_seconds).start()
            for chunk in session:
                sinks.write(chunk)
                held = max(held, session.stats.held_bytes)
            sinks.close()
            for failure in (feed.error, *(sinks.failures.get(name) for name in ESSENTIAL)):
                if failure is not None:
                    raise failure
            metrics["run/finished"] = True
        finally:
            metrics |= speed.values() | session.stats.metrics() | {"live/held_bytes": held}
            with contextlib.suppress(OSError):  # the failure under way is the one to tell
                sinks.close()
                write_metrics(directory, metrics)
    return metrics
