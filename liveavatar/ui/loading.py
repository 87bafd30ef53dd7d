"""The models behind the server, as the command line and the choices of visitors have them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from liveavatar.config import compose
from liveavatar.live.avatar import Avatar, open_avatar
from liveavatar.live.settings import LiveSettings
from liveavatar.memory.given import GB
from liveavatar.memory.plan import draw_up
from liveavatar.settings import hardware, node_count
from liveavatar.strategies.auto import ask_of
from liveavatar.types import BLOCK_FRAMES, FPS
from liveavatar.ui.engine import Budget, Choice, Load, Loaded
from liveavatar.ui.settings import ServerSettings

log = logging.getLogger(__name__)

SPARE_S = 30.0
"""Seconds of sound that may wait beside the longest recording."""

TRIED, TRIED_S = 4, 20.0
"""Blocks that are made to see how fast this machine is, within about so many seconds."""

CHOSEN = ("strategy", "sampler.steps", "sampler.shift")
"""Keys that a visitor's choice takes the place of."""


def loader(cfg: DictConfig, words: Sequence[str], settings: ServerSettings) -> Load:
    """How `Engine` loads: the configuration first, later its `words` with a visitor's choice laid over them."""
    mine = [word for word in words if not word.lstrip("+~").startswith("server.")]
    live = {"silence": "keep_alive", "lead_s": settings.lead_s, "queue_s": settings.voice_s + SPARE_S}

    def load(choice: Choice | None) -> Loaded:
        """Does not return on ranks beside the first: they do as it says until it closes, and end."""
        asked = cfg if choice is None else compose("infer", laid_over(mine, choice))
        merged = OmegaConf.merge(asked, {"live": live})
        assert isinstance(merged, DictConfig)
        return _loaded(open_avatar(merged))

    return load


def laid_over(words: Sequence[str], choice: Choice) -> list[str]:
    """The words without those that a choice replaces, and the choice's own."""
    kept = [word for word in words if word.lstrip("+").partition("=")[0] not in CHOSEN]
    return [word for word in kept if not word.startswith("strategy.")] + choice.words


def _loaded(avatar: Avatar) -> Loaded:
    try:
        cfg, found = avatar.cfg, avatar.loaded
        stream = avatar.cost()
        budget = Budget(int(hardware(cfg, None).device_gb * GB), _shared(avatar, stream), stream)
        block_s = tried(avatar)
    except BaseException:
        avatar.close()
        raise
    choice = Choice(found.strategy.name, int(cfg.sampler.steps), float(cfg.sampler.shift))
    about = {
        "model": cfg.model.name,
        "weights": str(found.metrics["weights"]),
        "trained": avatar.trained,
        "device": str(found.strategy.device),
        "precision": cfg.precision.dit,
        "processes": int(cfg.fabric.devices) * node_count(cfg),
        "block_s": round(block_s, 4),
    }
    return Loaded(avatar, budget, choice, about, keeps_up(block_s))


def keeps_up(block_s: float) -> int:
    """Streams that a machine makes in real time, a block taking `block_s` seconds; one is always tried."""
    return max(1, int(0.9 * BLOCK_FRAMES / FPS / max(block_s, 1e-6)))


def tried(avatar: Avatar) -> float:
    """Seconds that a block takes: the fastest of a few, of a stream that nobody sees. Warms everything up, too."""
    began, took = time.perf_counter(), []
    settings = LiveSettings(silence="wait")
    with avatar.session(settings=settings) as session:
        session.push(bytes(2 * 16_000 * TRIED), 16_000)
        session.finish()
        for chunk in session:
            took.append(chunk.timings["denoise"] + chunk.timings["decode"])
            if len(took) == TRIED or time.perf_counter() - began > TRIED_S:
                break
    return min(took)


def _shared(avatar: Avatar, stream: int) -> int:
    """What the plan foresees beside the streams: weights, and the activations of whoever has a turn."""
    cfg, setup = avatar.cfg, avatar.loaded.setup
    margin = int(hardware(cfg, None).margin_gb * GB)
    if setup is None:
        return margin
    return max(0, draw_up(ask_of(cfg), setup).ranks[0].peak - stream) + margin
