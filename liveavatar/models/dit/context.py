"""Condition tokens: the reference picture and the packed motion frames, with their places (semantics, 2 and 3)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Complex64, Float
from torch import Tensor, nn

from liveavatar.ops.rope import coarse_positions, grid_rotations

REFERENCE_FRAME = 30
"""Where the reference stands while the stream is young: 30 latent frames after its start."""

BUCKETS = (1, 2, 16)
"""Motion latents per bucket from the newest to the oldest; older ones are pooled coarser."""

MOTION_LATENTS = sum(BUCKETS)


@dataclass(frozen=True)
class Grid:
    """The token grid of a latent picture of h x w latent pixels: everything about sizes follows from it."""

    h: int
    w: int

    @property
    def rows(self) -> int:
        return self.h // 2

    @property
    def columns(self) -> int:
        return self.w // 2

    @property
    def frame_tokens(self) -> int:
        return self.rows * self.columns

    @property
    def sink_tokens(self) -> int:
        """Tokens of reference, newest frame, the two before (pooled 2x) and the sixteen before those (pooled 4x)."""
        return 2 * self.frame_tokens + (self.h // 4) * (self.w // 4) + 4 * (self.h // 8) * (self.w // 8)

    def noisy_turns(self, frame: int, frames: int, head_dim: int) -> Complex64[Tensor, "tokens pairs"]:
        """Rotations of a block's tokens; `frame` is its first latent frame counted from the start of the stream."""
        return grid_rotations(range(frame, frame + frames), range(self.rows), range(self.columns), head_dim)

    def reference_turns(self, place: int, head_dim: int) -> Complex64[Tensor, "tokens pairs"]:
        return grid_rotations([place], range(self.rows), range(self.columns), head_dim)

    def motion_turns(self, head_dim: int) -> Complex64[Tensor, "tokens pairs"]:
        """Rotations of the motion tokens, which lie before the stream and never move."""
        newest = grid_rotations([-1], range(self.rows), range(self.columns), head_dim)
        coarse = []
        for pooled, frames in ((2, [-3]), (4, [-19, -14, -9, -4])):
            rows = coarse_positions(self.rows, self.h // (2 * pooled))
            columns = coarse_positions(self.columns, self.w // (2 * pooled))
            coarse.append(grid_rotations(frames, rows, columns, head_dim))
        return torch.cat((newest, *coarse))


def reference_place(frame: int, distance: int) -> int:
    """Where the reference stands for a block that starts at `frame`: fixed at first, then `distance` frames ahead."""
    return REFERENCE_FRAME + max(0, frame - (REFERENCE_FRAME - distance))


class FramePacker(nn.Module):
    """The last 19 latent frames as tokens, the newer the finer: FramePack's packing (arXiv:2504.12626)."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_dim, dim, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.proj_2x = nn.Conv3d(in_dim, dim, kernel_size=(2, 4, 4), stride=(2, 4, 4))
        self.proj_4x = nn.Conv3d(in_dim, dim, kernel_size=(4, 8, 8), stride=(4, 8, 8))

    @staticmethod
    def _packed(proj: nn.Conv3d, bucket: Float[Tensor, "b c k h w"]) -> Float[Tensor, "b tokens d"]:
        """One bucket's tokens; a picture narrower than a token of its coarseness has none (see `Grid`)."""
        if any(side < kernel for side, kernel in zip(bucket.shape[-2:], proj.kernel_size[1:], strict=True)):
            return bucket.new_zeros(bucket.shape[0], 0, proj.out_channels)
        return tokens(proj(bucket))

    def forward(self, motion: Float[Tensor, "b c m h w"]) -> Float[Tensor, "b tokens d"]:
        motion = motion[:, :, -MOTION_LATENTS:]
        motion = F.pad(motion, (0, 0, 0, 0, MOTION_LATENTS - motion.shape[2], 0))
        oldest, middle, newest = motion.split(BUCKETS[::-1], dim=2)
        buckets = ((self.proj, newest), (self.proj_2x, middle), (self.proj_4x, oldest))
        return torch.cat([self._packed(proj, bucket) for proj, bucket in buckets], dim=1)


def tokens(picture: Float[Tensor, "b d f rows columns"]) -> Float[Tensor, "b tokens d"]:
    """Channels last, one row a token, in (frame, row, column) order."""
    return picture.flatten(2).transpose(1, 2)
