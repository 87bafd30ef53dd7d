"""Speech features handed out block by block: from finished recordings, and from long or live streams."""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from liveavatar.models.speech.encoder import (
    STATE_FIELD,
    STATE_STRIDE,
    VARIANCE_FLOOR,
    bucket,
    feature_index,
    normalise,
    to_30hz,
)
from liveavatar.types import BLOCK_FRAMES, FPS, SPEECH_RATE

MAX_RIGHT_S = 0.4
"""Longest look-ahead of a live stream in seconds: more would be felt as delay in a conversation."""

_FRAME_SAMPLES = SPEECH_RATE // FPS


@runtime_checkable
class StateEncoder(Protocol):
    """What the providers ask of a `SpeechEncoder`: normalised 16 kHz sound in, 50 states per second out."""

    def hidden_states(self, sound: Float[Tensor, " samples"]) -> Float[Tensor, "L T c"]: ...


class FullAudio:
    """Speech of finished recordings: each is encoded once as a whole, and blocks are slices (a `BlockAudio`).

    Args:
        encoder: the speech encoder.
        pcms: one recording per actor, mono 16 kHz; the shortest decides the length.
        clip_frames: video frames of a clip; the end is filled with silence to whole clips.
        lead_frames: how many video frames later than the pictures' own count the sound is. 3 where the first
            three pictures of the stream are thrown away, so that sound and picture meet; 0 is the reference.

    Attributes:
        features: [a, L, c, clip_frames * num_clips], on the encoder's device.
        num_clips: clips that the recordings fill.

    Raises:
        ValueError: there is no recording, or `lead_frames` is negative.
    """

    def __init__(
        self, encoder: StateEncoder, pcms: Sequence[Tensor], clip_frames: int = 48, lead_frames: int = 0
    ) -> None:
        self.lead_frames = _checked(pcms, lead_frames)
        tracks = [bucket(to_30hz(encoder.hidden_states(normalise(pcm))), clip_frames) for pcm in pcms]
        length = min(track.shape[-1] for track in tracks)
        self.features: Tensor = torch.stack([track[..., :length] for track in tracks])
        self.num_clips = length // clip_frames

    def block(self, index: int) -> Float[Tensor, "a L c t"]:
        """Features of a block's 12 video frames: zeros past the end, the first frame's before the start."""
        first = index * BLOCK_FRAMES - self.lead_frames
        frames = torch.arange(first, first + BLOCK_FRAMES, device=self.features.device)
        length = self.features.shape[-1]
        return self.features[..., frames.clamp(0, length - 1)].masked_fill(frames >= length, 0)


@runtime_checkable
class PcmSource(Protocol):
    """16 kHz mono sound by absolute sample number; zeros wherever it has none."""

    def read(self, start: int, stop: int) -> Float[Tensor, " samples"]: ...


class PcmBuffer:
    """A finished recording as a `PcmSource`."""

    def __init__(self, pcm: Float[Tensor, " samples"]) -> None:
        self.pcm = pcm

    def read(self, start: int, stop: int) -> Float[Tensor, " samples"]:
        """Samples `start` to `stop` (excluded), which may lie anywhere, also before 0."""
        length = self.pcm.shape[0]
        inside = self.pcm[min(max(start, 0), length) : min(max(stop, 0), length)]
        before = min(max(-start, 0), stop - start)
        return F.pad(inside, (before, stop - start - before - inside.shape[0]))


class WindowAudio:
    """Speech of a long or live stream: each block hears a window of fixed length around it (a `BlockAudio`).

    A block is a pure function of absolute sample positions. It depends on no sample at or after its own end
    plus `right_s` (the declared look-ahead), and on none before `span(index)[0]`; neither how the sound
    arrived nor which blocks were asked for before can change it. Memory does not grow with the stream. Unlike
    `FullAudio` it knows no end: past a recording's end it hears silence, where that gives zero features.

    Args:
        encoder: the speech encoder.
        sources: one per actor.
        left_s: seconds heard before the block, rounded up to whole states and at least one of them.
        right_s: seconds heard after it, at most 0.4: the delay that a live stream must accept.
        norm_s: loudness is normalised over this many seconds before the end of the window.
        lead_frames: as in `FullAudio`.

    Raises:
        ValueError: a length is out of its range, or there is no source.
    """

    def __init__(
        self,
        encoder: StateEncoder,
        sources: Sequence[PcmSource],
        left_s: float,
        right_s: float,
        norm_s: float = 8.0,
        lead_frames: int = 0,
    ) -> None:
        self.lead_frames = _checked(sources, lead_frames)
        if not 0 <= right_s <= MAX_RIGHT_S:
            raise ValueError(
                f"speech.right_s is {right_s}, but a block may look ahead 0 to {MAX_RIGHT_S} s, since it has "
                f"to wait for what it hears: use at most {MAX_RIGHT_S}"
            )
        if left_s < 0:
            raise ValueError(f"speech.left_s is {left_s}, but a length cannot be negative: use 0 or more")
        if norm_s <= 0:
            raise ValueError(f"speech.norm_s is {norm_s}, but loudness needs some sound: use a length above 0")
        self.encoder = encoder
        self.sources = list(sources)
        # The tiny shifts keep 0.4 * 16000 and its like from falling off a whole number.
        self._left = max(1, math.ceil(left_s * SPEECH_RATE / STATE_STRIDE - 1e-6)) * STATE_STRIDE
        self._right = math.floor(right_s * SPEECH_RATE + 1e-6)
        self._norm = max(1, round(norm_s * SPEECH_RATE))
        self._last: tuple[int, Tensor] | None = None

    def span(self, index: int) -> tuple[int, int]:
        """The samples [start, stop) that a block reads: it can be had once `stop` samples have arrived."""
        begin = self._begin(index)
        stop = begin + BLOCK_FRAMES * _FRAME_SAMPLES + self._right
        return min(begin - self._left, stop - self._norm), stop

    def block(self, index: int) -> Float[Tensor, "a L c t"]:
        """Features of a block's 12 video frames. The last block is kept: every denoising step asks again."""
        if self._last is None or self._last[0] != index:
            self._last = (index, torch.stack([self._features(source, index) for source in self.sources]))
        return self._last[1]

    def _begin(self, index: int) -> int:
        return (index * BLOCK_FRAMES - self.lead_frames) * _FRAME_SAMPLES

    def heard(self, source: PcmSource, index: int, before: int = 0) -> Float[Tensor, "L c t"]:
        """Features of one source for a block's frames and `before` frames ahead of them, from the block's own window.

        `block` is this with none before; a training learns from all frames that the window holds.
        Raises ValueError where the window does not reach back so far.
        """
        first = index * BLOCK_FRAMES - self.lead_frames - before
        if before < 0 or first * _FRAME_SAMPLES < self._begin(index) - self._left + STATE_STRIDE:
            raise ValueError(f"before={before}: the window holds {self._left / SPEECH_RATE:g} s ahead of its block")
        return self._features(source, index, before)

    def _features(self, source: PcmSource, index: int, before: int = 0) -> Float[Tensor, "L c t"]:
        states = self.encoder.hidden_states(self._window(source, index))
        first = index * BLOCK_FRAMES - self.lead_frames - before
        frames = torch.arange(first, first + BLOCK_FRAMES + before, device=states.device)
        origin = (self._begin(index) - self._left) // STATE_STRIDE  # the window's first state
        thirds = 5 * feature_index(frames) - 3 * origin  # of a state, from there
        low = thirds.div(3, rounding_mode="floor")
        share = (thirds % 3).to(states.dtype)[None, :, None] / 3
        return torch.lerp(states[:, low], states[:, low + (thirds % 3 > 0)], share).mT.contiguous()

    def _window(self, source: PcmSource, index: int) -> Float[Tensor, " samples"]:
        start, stop = self.span(index)
        heard = source.read(start, stop)
        recent = heard[max(-start, len(heard) - self._norm) :].double()  # what lies before sample 0 never was
        mean, variance = (recent.mean(), recent.var(correction=0)) if len(recent) else (0.0, 0.0)
        window = heard[self._begin(index) - self._left - start :].double()
        sound = ((window - mean) / (variance + VARIANCE_FLOOR) ** 0.5).float()
        # The last frame may lean on a state that ends 80 samples after the block: silence where not ours.
        return F.pad(sound, (0, max(0, STATE_FIELD - STATE_STRIDE - self._right)))


def _checked(tracks: Sequence[object], lead_frames: int) -> int:
    if not tracks:
        raise ValueError("no sound was given: pass one recording or source per actor (audio=voice.wav)")
    if lead_frames < 0:
        raise ValueError(
            f"speech.lead_frames is {lead_frames}, but sound cannot lead by less than 0 frames: use 0 or 3"
        )
    return lead_frames
