"""Stage `speech`: the small speech encoder learns to hear how a mouth moves, from sound alone (a `Task`).

At 14B the speech encoder comes trained on a thousand languages' hours. The embedded one starts from nothing; heard
through the DiT alone it learns late. Here every frame of a window teaches it, and what it then says can be computed
once for all clips (`dit.speech`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from liveavatar.intake import SpeechSettings
from liveavatar.models.speech import PcmBuffer, SpeechEncoder, WindowAudio
from liveavatar.training.checkpoint import export_module
from liveavatar.training.loop import Draw
from liveavatar.training.sources import TellingSource, Told
from liveavatar.training.timbre import coloured, revoiced
from liveavatar.types import BLOCK_FRAMES, FPS

log = logging.getLogger(__name__)

CURVES = 3
"""Numbers by which a source says how the mouth moves: opening, width, rounding."""


@dataclass(frozen=True)
class HearSettings:
    """What the speech encoder learns from (the `hear` node).

    windows: windows of a batch, each of a clip of its own. before: frames ahead of the block that also teach.
    held_out: clips to validate with. coloured: share of the windows heard through another microphone. revoiced: share
    of them said by a larger or smaller throat. keep: weight of telling the words of a window, coloured or not, as the
    encoder of `train.init` tells them uncoloured; a DiT that learnt with that one then hears no other language.
    Raises ValueError, naming the key, for values that cannot work.
    """

    windows: int = 12
    before: int = 48
    held_out: int = 24
    coloured: float = 0.0
    revoiced: float = 0.0
    keep: float = 0.0

    def __post_init__(self) -> None:
        for key, least in (("windows", 1), ("before", 0), ("held_out", 1), ("keep", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"hear.{key}={getattr(self, key)} must be {least} or more")
        for key in ("coloured", "revoiced"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"hear.{key}={getattr(self, key)} is a share of the windows: write 0 to 1")


class SpeechTask:
    """A linear reading of the encoder's states, at every video frame, against the mouth's true curves."""

    def __init__(
        self,
        encoder: SpeechEncoder,
        settings: HearSettings,
        speech: SpeechSettings,
        lead_frames: int,
        source: TellingSource,
        device: torch.device,
        steps: int,
        known: SpeechEncoder | None = None,
    ) -> None:
        """`known` is the encoder to keep to (`hear.keep`); it stays as it is."""
        self.known = None if known is None else known.requires_grad_(False).eval()
        self.encoder, self.settings, self.speech, self.lead = (
            encoder.requires_grad_(True),
            settings,
            speech,
            lead_frames,
        )
        self.source, self.device, self.steps = source, device, steps
        heard = encoder.model.config
        self.listener = nn.Linear((heard.num_hidden_layers + 1) * heard.hidden_size, CURVES, device=device)
        self.modules: Mapping[str, nn.Module] = {"speech": encoder, "listener": self.listener}
        self._told = lru_cache(maxsize=4096)(source.tell)

    def loss(self, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng(draw.key)
        numbers, errors, strayed = self.source.kept, [], []
        for pick in rng.integers(len(numbers), size=self.settings.windows):
            plain = told = self._told(int(numbers[int(pick)]))
            if another := rng.random() < self.settings.revoiced:
                told = revoiced(told, rng)
            if rng.random() < self.settings.coloured:
                told = Told(coloured(told.sound, rng), told.curves)
            block = int(rng.integers(max(1, len(told.curves) // BLOCK_FRAMES)))
            states = self._states(self.encoder, told, block, self.settings.before)
            errors.append((self.listener(states) - self._curves(told, block, len(states))).square().mean())
            if self.known is not None and not another:
                with torch.no_grad():
                    before = self._states(self.known, plain, block, self.settings.before)
                strayed.append((states, before))
        error = torch.stack(errors).mean()
        parts = {"curves": float(error.detach())}
        if strayed:
            astray = _astray(*(torch.cat(side) for side in zip(*strayed, strict=True)))
            error, parts["strayed"] = error + self.settings.keep * astray, float(astray.detach())
        return error, parts

    def validate(self, step: int, folder: Path | None) -> dict[str, float]:
        """Pearson's r of each curve over whole held-out clips, block by block as inference hears them."""
        numbers = list(self.source.held_out)[: self.settings.held_out]
        pairs: list[tuple[Tensor, Tensor]] = []
        for number in numbers:
            told = self._told(int(number))
            blocks = [self._read(told, block, 0) for block in range(len(told.curves) // BLOCK_FRAMES)]
            pairs.append((torch.cat([made for made, _ in blocks]), torch.cat([wanted for _, wanted in blocks])))
        made, wanted = (torch.cat([pair[side] for pair in pairs]) for side in (0, 1))
        r = _pearson(made, wanted)
        names = ("opening", "width", "rounding")
        return {f"r_{name}": float(value) for name, value in zip(names, r, strict=True)} | {
            "curves": float((made - wanted).square().mean())
        }

    def export(self, folder: Path) -> list[Path]:
        """`speech.safetensors`; the listener was only for learning."""
        return [export_module(self.encoder, folder / "speech.safetensors", torch.float32, {"stage": "speech"})]

    def _read(self, told: Told, block: int, before: int) -> tuple[Float[Tensor, "t k"], Float[Tensor, "t k"]]:
        """The curves as read from a block's window, and as they are."""
        states = self._states(self.encoder, told, block, before)
        return self.listener(states), self._curves(told, block, len(states))

    def _states(self, encoder: SpeechEncoder, told: Told, block: int, before: int) -> Float[Tensor, "t c"]:
        """All states of a block's frames, and of up to `before` ahead of them, one row a frame."""
        audio = window_audio(encoder, torch.from_numpy(told.sound).to(self.device), self.speech, self.lead)
        within = min(before, int(self.speech.left_s * FPS) - 1)
        return audio.heard(audio.sources[0], block, max(0, within)).permute(2, 0, 1).flatten(1)

    def _curves(self, told: Told, block: int, count: int) -> Float[Tensor, "t k"]:
        curves = curves_until(told, block, count, self.lead)
        return torch.from_numpy(curves.astype(np.float32)).to(self.device)


def window_audio(encoder: SpeechEncoder, sound: Tensor, given: SpeechSettings, lead_frames: int) -> WindowAudio:
    """The streaming encoder of one finished recording, with the windows of inference."""
    return WindowAudio(encoder, [PcmBuffer(sound)], given.left_s, given.right_s, given.norm_s, lead_frames)


def curves_until(told: Told, block: int, count: int, lead_frames: int) -> Float[np.ndarray, "t k"]:
    """The curves of the last `count` frames up to a block's end; frames ahead of the clip show its first."""
    last = (block + 1) * BLOCK_FRAMES - lead_frames
    return told.curves[np.arange(last - count, last).clip(0, len(told.curves) - 1)]


def _astray(states: Float[Tensor, "t c"], before: Float[Tensor, "t c"]) -> Tensor:
    """How far states are from those of another encoder, in shares of what each of these varies by in a whole batch.

    Not in a window: in a silent one nothing varies, and the least stray would outweigh everything.
    """
    varies = before.var(0)
    return ((states - before).square().mean(0) / (varies + 0.01 * varies.mean() + 1e-8)).mean()


def _pearson(a: Float[Tensor, "t k"], b: Float[Tensor, "t k"]) -> Float[Tensor, " k"]:
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt().clamp_min(1e-9)


def checked_source(source: object) -> TellingSource:
    """The source of a stage that needs the mouth's curves. Raises ValueError where they are not known."""
    if not isinstance(source, TellingSource):
        raise ValueError(
            f"stage=speech learns from curves of the mouth, which data={type(source).__name__} does not know; "
            "write data=toon"
        )
    return source
