"""What a stream is conditioned on, and how long each part of it holds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from liveavatar.models.vae.codec import WanCodec
from liveavatar.types import BLOCK_FRAMES, BLOCK_LATENTS, LATENT_STRIDE, BlockAudio


@dataclass(frozen=True)
class RolloutSettings:
    """How a stream unfolds (the `rollout` node).

    mode: `streaming`, the reference's pipeline semantics, on every topology; or `clipwise`, those of its single-GPU
        program (semantics, 7 and 8): clips decoded with re-encoded motion, on one device only.
    frames_per_clip: video frames of a clip, the reference's --infer_frames: after the first clip the reference picture
        gives way to the first generated latent.
    cache_frames: latent frames that a ring holds.
    local_frames: latent frames a block may look back on, its own included; -1 means all that the ring holds.
    sink_distance: smallest and largest distance of the reference ahead of a block, in latent frames.
    align_sound: condition three video frames later, so that sound and picture agree although the first three pictures
        of a stream are dropped (the reference is 0.12 s early).
    whole_clips: run on to the end of the clip in which the voice ends, as the reference does.
    masks_follow_block: use the mask frames of the block at hand; the reference uses the first three for ever.

    Raises ValueError, naming the key, for values that cannot work.
    """

    mode: Literal["streaming", "clipwise"] = "streaming"
    frames_per_clip: int = 48
    cache_frames: int = 12
    local_frames: int = -1
    sink_distance: Sequence[int] = (4, 30)
    align_sound: bool = True
    whole_clips: bool = False
    masks_follow_block: bool = True

    def __post_init__(self) -> None:
        if self.mode not in ("streaming", "clipwise"):
            raise ValueError(f"rollout.mode={self.mode!r} is unknown; write rollout=streaming or rollout=clipwise")
        if self.frames_per_clip < BLOCK_FRAMES or self.frames_per_clip % BLOCK_FRAMES:
            near = max(BLOCK_FRAMES, round(self.frames_per_clip / BLOCK_FRAMES) * BLOCK_FRAMES)
            raise ValueError(
                f"rollout.frames_per_clip={self.frames_per_clip} does not divide into blocks of {BLOCK_FRAMES} video "
                f"frames; write rollout.frames_per_clip={near}"
            )
        if self.cache_frames < BLOCK_LATENTS or self.cache_frames % BLOCK_LATENTS:
            raise ValueError(
                f"rollout.cache_frames={self.cache_frames} must be a multiple of the {BLOCK_LATENTS} latent frames of "
                "a block; the released weights use rollout.cache_frames=12"
            )
        if self.local_frames != -1 and self.local_frames < BLOCK_LATENTS:
            raise ValueError(
                f"rollout.local_frames={self.local_frames} does not even hold the block itself ({BLOCK_LATENTS} latent "
                "frames); write -1 for all that the cache holds"
            )

        if len(self.sink_distance) != 2:
            raise ValueError(
                f"rollout.sink_distance={list(self.sink_distance)} must be two latent frame counts, the smaller first; "
                "the released weights were trained with [4,30]"
            )

    @property
    def blocks_per_clip(self) -> int:
        return self.frames_per_clip // BLOCK_FRAMES

    @property
    def clip_latents(self) -> int:
        return self.frames_per_clip // LATENT_STRIDE

    @property
    def lead_frames(self) -> int:
        """Video frames by which the conditioning lags, to make up for the pictures dropped at the start."""
        return DROPPED_FRAMES if self.align_sound else 0


DROPPED_FRAMES = 3
"""Pictures not shown at the very start of a stream: the decoder needs them to settle."""


@runtime_checkable
class PoseTrack(Protocol):
    """Pose latents of a block, [1, 16, 3, h, w]; zeros where no pose video was given."""

    def block(self, index: int) -> Tensor: ...


@dataclass(frozen=True)
class NoPose:
    """No pose video: latents of zero (the bias of the pose encoder still acts, semantics 1.4)."""

    zeros: Float[Tensor, "1 16 3 h w"]

    def block(self, index: int) -> Tensor:
        return self.zeros


class PoseClips:
    """Latents of a pose video, clip by clip: each clip is encoded behind a copy of its own first frame (1.4).

    `frames` are taken as they are needed, and one clip is held at a time, so clips can only be asked for in order. The
    first frame stands `lead_frames` longer, as the sound does. Past the end of the video the pose is black, as in the
    reference. Raises ValueError when there is no frame.
    """

    def __init__(
        self, codec: WanCodec, frames: Iterator[Float[Tensor, "3 H W"]], frames_per_clip: int, lead_frames: int = 0
    ) -> None:
        first = next(frames, None)
        if first is None:
            raise ValueError("request.pose holds no frame: give a video with at least one")
        self.codec, self.frames_per_clip, self.black = codec, frames_per_clip, torch.full_like(first, -1.0)
        self.frames = chain([first] * (1 + lead_frames), frames)
        self._clip: tuple[int, Tensor] | None = None

    def block(self, index: int) -> Float[Tensor, "1 c f h w"]:
        clip, number = divmod(index, self.frames_per_clip // BLOCK_FRAMES)
        if self._clip is None or self._clip[0] != clip:
            if clip != (0 if self._clip is None else self._clip[0] + 1):
                raise RuntimeError(f"clip {clip} of a pose video was asked for out of order")
            self._clip = (clip, self._encoded())
        return self._clip[1][:, :, number * BLOCK_LATENTS : (number + 1) * BLOCK_LATENTS]

    def _encoded(self) -> Tensor:
        taken = list(islice(self.frames, self.frames_per_clip))
        taken += [self.black] * (self.frames_per_clip - len(taken))
        behind = torch.stack([taken[0], *taken], dim=1).unsqueeze(0)
        weights = next(self.codec.parameters())
        return self.codec.encode(behind.to(weights.device, weights.dtype))[:, :, 1:]


@dataclass(frozen=True)
class MaskTrack:
    """Where each actor's voice acts, per latent frame of the stream; the last frame holds for ever.

    `follow` False uses the first three frames in every block, as the reference does.
    """

    masks: Float[Tensor, "a frames rows columns"]
    follow: bool = True

    def block(self, index: int) -> Float[Tensor, "a f rows columns"]:
        start = index * BLOCK_LATENTS if self.follow else 0
        last = self.masks.shape[1] - 1
        return self.masks[:, [min(start + i, last) for i in range(BLOCK_LATENTS)]]


@dataclass(frozen=True)
class Conditioning:
    """All that a stream hears, reads and looks at. `text` is not padded; `motion` is oldest first."""

    text: Float[Tensor, "1 words text_dim"]
    reference: Float[Tensor, "1 16 1 h w"]
    motion: Float[Tensor, "1 16 m h w"]
    audio: BlockAudio
    pose: PoseTrack
    masks: MaskTrack | None = None


class SinkPlan:
    """What the sink shows, block by block: the picture at first, and from `refresh` on the first generated latent.

    `motion` is asked at each prefill: in clipwise online decoding it is by then the re-encoded first clip.
    """

    def __init__(
        self,
        reference: Tensor,
        motion: Callable[[], Tensor],
        first_block: int = 0,
        refresh: int | None = None,
    ) -> None:
        self.reference, self.motion = reference, motion
        self.first_block, self.refresh = first_block, refresh
        self._generated: Tensor | None = None

    def due(self, block: int) -> tuple[Tensor, Tensor] | None:
        """Reference and motion latents to prefill before `block`, or None where the sink stays as it is."""
        if block == self.first_block:
            return self.reference, self.motion()
        if block != self.refresh:
            return None
        if self._generated is None:
            raise RuntimeError(
                f"block {block} takes the first generated latent as its reference, but block {self.first_block} is not "
                "finished: the schedule must not take it up earlier"
            )
        return self._generated, self.motion()

    def lacks(self, end: int | None = None) -> bool:
        """Whether the first generated latent is still to come, and wanted at or after block `end` (None: anywhere)."""
        return self._generated is None and self.refresh is not None and (end is None or end <= self.refresh)

    def observe(self, block: int, latents: Float[Tensor, "1 16 f h w"]) -> None:
        """Take note of a finished block: the first latent of the stream becomes the reference later."""
        if block == self.first_block and self.refresh is not None:
            self._generated = latents[:, :, :1].clone()
