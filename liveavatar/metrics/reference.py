"""Another video beside the one that is measured: for precisions, steps and caches against a run that is trusted."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8

from liveavatar.metrics import picture
from liveavatar.metrics.about import records, skipped
from liveavatar.metrics.series import Mean
from liveavatar.metrics.suite import Piece

LACKING = "no reference: name a video by reference=… of python -m liveavatar.evaluate"


class Beside:
    """Frames of a reference, handed out along with those of the video; brought to its size where theirs differs.

    The shorter of the two decides how many frames are compared.
    """

    def __init__(self, frames: Iterator[UInt8[np.ndarray, "H W 3"]]) -> None:
        self._frames = frames

    def along(self, piece: Piece) -> Piece:
        """The piece, with what stands beside it."""
        others = list(islice(self._frames, len(piece.frames)))
        size = piece.frames.shape[1:3]
        piece.resized = bool(others) and others[0].shape[:2] != size
        if piece.resized:
            others = [_resized(other, size) for other in others]
        piece.reference = np.stack(others) if others else np.zeros((0, *size, 3), np.uint8)
        return piece


class ReferenceMeter:
    """Likeness to the reference, frame by frame."""

    abouts = records(
        ("reference/psnr", "peak signal to noise of RGB, from the mean squared error over all frames", "decibels; 100 for equal videos", "higher"),
        ("reference/ssim", "structural similarity of luma (Wang et al. 2004; Gaussian, 11 pixels, sigma 1.5), mean over frames", "-1 to 1", "higher"),
        ("reference/delta_e", "distance of colours in CIELAB (1976), mean over pixels and frames", "ΔE, from 0", "lower"),
        ("reference/frames", "frames that were compared", "count", "none"),
        ("reference/resized", "1 where the reference had another size and was resized", "0 or 1", "none"),
        requires="reference=… : a video to compare with",
    )  # fmt: skip

    def __init__(self) -> None:
        self._error, self._ssim, self._colour, self.resized = Mean(), Mean(), Mean(), False

    def see(self, piece: Piece) -> None:
        theirs = piece.reference
        if theirs is None or not len(theirs):
            return
        self.resized |= piece.resized
        mine = piece.frames[: len(theirs)]
        wrong = mine.astype(np.float32) - theirs
        self._error.add((wrong**2).mean((1, 2, 3), dtype=np.float64))
        self._ssim.add(picture.ssim(piece.grey[: len(theirs)], picture.grey(theirs)))
        self._colour.add(picture.delta_e(picture.lab(mine), picture.lab(theirs)).mean((1, 2), dtype=np.float64))

    def values(self) -> dict[str, float | str]:
        if not self._error.count:
            return skipped("no frame of the reference was there to compare with", self.abouts)
        return {
            "reference/psnr": min(100.0, picture.psnr(self._error.value)),
            "reference/ssim": self._ssim.value,
            "reference/delta_e": self._colour.value,
            "reference/frames": float(self._error.count),
            "reference/resized": float(self.resized),
        }


def _resized(frame: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    x = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
    return x[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
