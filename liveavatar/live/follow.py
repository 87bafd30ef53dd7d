"""The ranks beside rank 0: they make what it makes, when it says so, and show nothing."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from liveavatar.live.blank import Blank
from liveavatar.session import AvatarSession, Piece, Stream
from liveavatar.strategies.announce import Announcements
from liveavatar.strategies.faults import RankLost

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Begin:
    """A new stream: its number, the picture as uint8 [H, W, 3], and the rest as `Avatar.session` takes it."""

    number: int
    picture: np.ndarray
    prompt: str
    area: int
    seed: int
    start_block: int
    decode: bool


@dataclass(frozen=True)
class Stretch:
    """The next blocks of a stream, with the speech features of each and, where it changes, the prompt."""

    number: int
    first: int
    count: int
    features: list[Tensor]
    prompt: str | None


@dataclass(frozen=True)
class Leave:
    """A stream is over."""

    number: int


class Handed:
    """Speech features by block, handed over ahead of a stretch (a `BlockAudio`); the same on every rank."""

    def __init__(self) -> None:
        self.features: dict[int, Tensor] = {}

    def block(self, index: int) -> Tensor:
        return self.features[index]


@torch.no_grad()
def begin(models: AvatarSession, asked: Begin) -> Stream:
    """A stream with caches of its own, on this rank. Raises ValueError for what cannot be used."""
    gathered = models.intake.live(Image.fromarray(asked.picture), asked.prompt, asked.area, Handed())
    stream = models.begin(gathered, asked.seed, asked.start_block)
    if not asked.decode:
        stream.decoding = Blank(gathered.info.height, gathered.info.width) if models.shows else None
    return stream


@torch.no_grad()
def advance(models: AvatarSession, stream: Stream, asked: Stretch, text: Tensor | None) -> list[Piece]:
    """The next blocks of a stream, on this rank; pieces where they are shown."""
    handed = stream.gathered.conditioning.audio
    assert isinstance(handed, Handed)
    handed.features = {asked.first + number: one.to(models.device) for number, one in enumerate(asked.features)}
    if text is not None:
        stream.rollout.change_prompt(text, asked.first)
    return list(models.pieces(stream, asked.count, asked.first))


def follow(models: AvatarSession, strategy: Any, said: Announcements) -> None:
    """Do as rank 0 says until it ends. Does not return: the program goes on on rank 0 alone."""
    streams: dict[int, Stream] = {}
    code = 0
    try:
        with strategy.watched():
            while (message := said.hear()) is not None:
                if isinstance(message, Begin):
                    streams[message.number] = begin(models, message)
                elif isinstance(message, Stretch):
                    text = None if message.prompt is None else models.intake.read(message.prompt)
                    advance(models, streams[message.number], message, text)
                else:
                    streams.pop(message.number, None)
    except RankLost as lost:
        if lost.tells:
            sys.stderr.write(f"liveavatar: {lost}\n")
        code = 1
    except KeyboardInterrupt:  # it reaches all ranks of a terminal
        code = 130
    strategy.release()
    sys.exit(code)
