"""From a request to its conditioning: everything that a user names is read, checked and encoded here."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from liveavatar.media.audio import PLAYBACK_RATE, Voice, load_voice, mix
from liveavatar.media.image import fit_image, fit_size, load_image
from liveavatar.media.mask import actor_masks, load_masks
from liveavatar.media.video import fit_frame, read_video
from liveavatar.models.dit.context import Grid
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.speech import FullAudio, PcmBuffer, PcmSource, SpeechEncoder, WindowAudio
from liveavatar.models.text import TextEncoder, Tokenizer, clean_text
from liveavatar.models.vae.codec import WanCodec
from liveavatar.sampling.conditioning import (
    DROPPED_FRAMES,
    Conditioning,
    MaskTrack,
    NoPose,
    PoseClips,
    PoseTrack,
    RolloutSettings,
)
from liveavatar.sampling.decoding import MOTION_FRAMES
from liveavatar.types import (
    BLOCK_FRAMES,
    BLOCK_LATENTS,
    FPS,
    LATENT_STRIDE,
    SPEECH_RATE,
    AvatarRequest,
    BlockAudio,
    StreamInfo,
)

log = logging.getLogger(__name__)

VAE_STRIDE = 8
MIN_SIDE = 64
"""Pixels: the coarsest motion tokens are made of squares of that size."""

STILL_FRAMES = 5
"""Frames that the reference's single-GPU program makes of the picture before it encodes anything."""


@dataclass(frozen=True)
class Parts:
    """The models of an avatar; they may be shared by any number of sessions."""

    dit: AvatarDiT
    text: TextEncoder
    tokenizer: Tokenizer
    speech: SpeechEncoder
    codec: WanCodec
    size_multiple: int = 64


@dataclass(frozen=True)
class SpeechSettings:
    """How much of the voice a block may hear (the `speech` node).

    context: `full` encodes a recording as a whole, as the reference does; `window` hears `left_s` before and `right_s`
        after a block, in memory that does not grow. Recordings above `full_limit_s` seconds always take the window.
    norm_s: seconds over which the window's loudness is normalised.
    """

    context: Literal["full", "window"] = "full"
    left_s: float = 2.4
    right_s: float = 0.32
    norm_s: float = 8.0
    full_limit_s: float = 60.0

    def __post_init__(self) -> None:
        if self.context not in ("full", "window"):
            raise ValueError(f"speech.context={self.context!r} is unknown; write speech.context=full or =window")


@dataclass(frozen=True)
class Gathered:
    """A request read and encoded. `window` holds the frames that the motion latents stand for."""

    info: StreamInfo
    conditioning: Conditioning
    window: Tensor
    voice: Voice
    blocks: int


def check_request(request: AvatarRequest) -> float:
    """Read all that a request names and keep nothing, so that a mistake is told before a model is loaded.

    Gives the seconds of video that are asked for. Raises ValueError, naming the key, for what cannot be used.
    """
    load_image(request.image)
    voices = [load_voice(path) for path in request.audio]
    seconds = _seconds(voices, request)
    if len(voices) > 1:
        load_masks(request.masks)
    if request.pose is not None:
        read_video(request.pose, limit=1)
    return seconds


def _seconds(voices: list[Voice], request: AvatarRequest) -> float:
    """How much of the voices is heard."""
    longest = request.max_seconds
    if longest is not None and not longest > 0:
        raise ValueError(f"request.max_seconds={longest} must be positive, or null for the whole voice")
    if len(voices) > 1 and len(request.masks) != len(voices):
        raise ValueError(
            f"request.audio names {len(voices)} voices, so request.masks must name as many masks, one for each "
            f"speaker (white where the speaker is); it names {len(request.masks)}"
        )
    shortest = min(voice.seconds for voice in voices)
    return shortest if longest is None else min(shortest, longest)


class Intake:
    """Reads and encodes requests for one set of models. Raises ValueError, naming the key, for what cannot be used.

    `knows_db`: a portrait that the codec gives back below so many decibels is unlike what the weights were trained on,
    and that is said; 0 never says so.
    """

    def __init__(
        self,
        parts: Parts,
        rollout: RolloutSettings,
        speech: SpeechSettings,
        device: torch.device,
        knows_db: float = 0.0,
    ) -> None:
        self.parts, self.rollout, self.speech, self.device = parts, rollout, speech, device
        self.knows_db = knows_db

    @torch.no_grad()
    def __call__(self, request: AvatarRequest) -> Gathered:
        voices = [load_voice(path) for path in request.audio]
        seconds = _seconds(voices, request)
        voices = [voice.cut(seconds).padded(BLOCK_FRAMES / FPS) for voice in voices]
        image = load_image(request.image)
        height, width = self.sides(image, request.size, str(request.image))
        log.info(
            "picture %d×%d → %d×%d (an area of at most %d pixels, sides multiples of %d)",
            *(image.width, image.height, width, height, request.size, self.parts.size_multiple),
        )
        reference, motion, window = self._look(fit_image(image, height, width).to(self.device))
        audio = self._listen(voices)
        frames, blocks = self._length(voices, audio)
        given = Conditioning(
            text=self.read(request.prompt),
            reference=reference,
            motion=motion,
            audio=audio,
            pose=self._pose(request, height, width, frames),
            masks=self._masks(request, len(voices), Grid(height // VAE_STRIDE, width // VAE_STRIDE), blocks),
        )
        info = StreamInfo(width, height, FPS, PLAYBACK_RATE, frames, blocks)
        return Gathered(info, given, window, mix(voices), blocks)

    @torch.no_grad()
    def live(self, image: Image, prompt: str, size: int, audio: BlockAudio) -> Gathered:
        """What a stream is given whose sound is still to come: its voice is empty, its length not known."""
        height, width = self.sides(image, size, "the picture")
        reference, motion, window = self._look(fit_image(image, height, width).to(self.device))
        given = Conditioning(
            text=self.read(prompt), reference=reference, motion=motion, audio=audio, pose=self._still(height, width)
        )
        info = StreamInfo(width, height, FPS, PLAYBACK_RATE, None)
        return Gathered(info, given, window, Voice(np.zeros(0, np.float32), PLAYBACK_RATE), 0)

    def sides(self, image: Image, size: int, name: str = "the picture") -> tuple[int, int]:
        """Height and width of the video of a picture. Raises ValueError where a side would be too short."""
        height, width = fit_size(image.height, image.width, size, self.parts.size_multiple)
        if min(height, width) < MIN_SIDE:
            raise ValueError(
                f"request.size={size} makes {height}×{width} pixels of {name}, and no side may be "
                f"under {MIN_SIDE}: write a larger area, such as request.size=128*128, or crop the picture"
            )
        return height, width

    def _look(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reference latent, motion latents, and the frames that the motion latents stand for."""
        codec = self.parts.codec
        still = picture.to(next(codec.parameters()).dtype)[None, :, None]
        if self.knows_db:
            self._compare(still)
        if self.rollout.mode == "streaming":
            window = still.expand(-1, -1, MOTION_FRAMES, -1, -1)
            return codec.encode(still), codec.encode(window), window
        window = still.expand(-1, -1, STILL_FRAMES * MOTION_FRAMES, -1, -1)
        return codec.encode(window[:, :, :STILL_FRAMES])[:, :, 1:], codec.encode(window), window

    def _compare(self, still: Tensor) -> None:
        """Say so where a portrait is of another kind than those the weights were trained on."""
        again = self.parts.codec.decode(self.parts.codec.encode(still)).clamp(-1, 1)
        found = -10 * math.log10(max(float((again - still).float().square().mean()) / 4, 1e-9))
        if found < self.knows_db:
            log.warning(
                "this portrait is unlike the drawn faces that the embedded weights were trained on (their codec gives "
                "it back at %.1f dB, and drawn ones at %.0f and more): expect its colours at best. Portraits of their "
                "kind: python -m liveavatar.training.toon --preview sheet.png; photographs want model=s2v_14b",
                found,
                self.knows_db,
            )

    def _listen(self, voices: list[Voice]) -> FullAudio | WindowAudio:
        pcms = [torch.from_numpy(voice.at(SPEECH_RATE)).to(self.device) for voice in voices]
        lead, given = self.rollout.lead_frames, self.speech
        longest = max(len(pcm) for pcm in pcms) / SPEECH_RATE
        if given.context == "full" and longest <= given.full_limit_s:
            return FullAudio(self.parts.speech, pcms, self.rollout.frames_per_clip, lead)
        if given.context == "full":
            log.info("the voice lasts %.0f s, more than speech.full_limit_s: it is heard through a window", longest)
        return self.window([PcmBuffer(pcm) for pcm in pcms])

    def window(self, sources: Sequence[PcmSource]) -> WindowAudio:
        """Sound that is heard through a window, whether it is all there or still to come."""
        given = self.speech
        lead = self.rollout.lead_frames
        return WindowAudio(self.parts.speech, sources, given.left_s, given.right_s, given.norm_s, lead)

    def _length(self, voices: list[Voice], audio: FullAudio | WindowAudio) -> tuple[int, int]:
        """Video frames to show and blocks to denoise for them."""
        frames = max(BLOCK_FRAMES, round(min(voice.seconds for voice in voices) * FPS))
        if self.rollout.whole_clips:
            per_clip = self.rollout.frames_per_clip
            clips = audio.num_clips if isinstance(audio, FullAudio) else frames // per_clip + 1
            frames = clips * per_clip - DROPPED_FRAMES
        return frames, -(-(frames + DROPPED_FRAMES) // BLOCK_FRAMES)

    @torch.no_grad()
    def read(self, prompt: str) -> Tensor:
        """A prompt as the model takes it, [1, words, text_dim]."""
        ids = self.parts.tokenizer(clean_text(prompt))
        return self.parts.text.encode(torch.tensor(ids, device=self.device)).unsqueeze(0)

    def _pose(self, request: AvatarRequest, height: int, width: int, frames: int) -> PoseTrack:
        if request.pose is None:
            return self._still(height, width)
        fitted = (fit_frame(frame, height, width) for frame in read_video(request.pose, limit=frames))
        return PoseClips(self.parts.codec, fitted, self.rollout.frames_per_clip, self.rollout.lead_frames)

    def _still(self, height: int, width: int) -> NoPose:
        latent = (1, self.parts.dit.in_dim, BLOCK_LATENTS, height // VAE_STRIDE, width // VAE_STRIDE)
        return NoPose(torch.zeros(latent, device=self.device, dtype=self.parts.dit.dtype))

    def _masks(self, request: AvatarRequest, actors: int, grid: Grid, blocks: int) -> MaskTrack | None:
        if not request.masks or actors == 1:
            if request.masks:
                log.warning("request.masks is ignored: there is one voice, and it acts on the whole picture")
            return None
        masks = load_masks(request.masks)
        follow = self.rollout.masks_follow_block
        # one mask picture per video frame, four to a latent frame; the reference spreads them over one clip instead
        frames = -(-masks[0].shape[0] // LATENT_STRIDE) if follow else self.rollout.clip_latents
        frames = max(BLOCK_LATENTS, min(frames, blocks * BLOCK_LATENTS))
        return MaskTrack(actor_masks(masks, frames, grid.rows, grid.columns).to(self.device), follow)
