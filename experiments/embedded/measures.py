"""What a made video is worth beside the true one, read from the pictures alone."""

from __future__ import annotations

import numpy as np
import torch
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from experiments.embedded.cases import Frames
from liveavatar.metrics import toon
from liveavatar.training.toon import Clip
from liveavatar.types import FPS

LAGS = range(-4, 5)
SHUT = 0.58
"""Eyes below this openness are blinking (`metrics.toon.blinks`)."""


def measure(made: Frames, true: Frames, clip: Clip) -> dict[str, float]:
    """All figures of one clip. Lengths in frames, opening as a share of a mouth open all the way, colours in ΔE*ab."""
    count = min(len(made), len(true))
    made, true = made[:count], true[:count]
    opening = toon.mouth(made).opening
    lag, best = best_lag(opening, clip.motion.opening[:count])
    own, theirs = toon.identity_colours(made), toon.identity_colours(true)
    head, wanted = toon.sway(made, clip.portrait(made.shape[1:3])), toon.sway(true, clip.portrait(made.shape[1:3]))
    psnr, similar = picture(made, true, head - wanted)
    minutes = count / FPS / 60
    return {
        "lip_r": pearson(opening, clip.motion.opening[:count]),
        "lip_r_best_lag": best,
        "lip_lag": float(lag),
        "psnr": psnr,
        "ssim": similar,
        "psnr_whole": decibels(made.astype(np.float32), true.astype(np.float32)),
        "colour_de": float(max(toon.delta_e(own[name], theirs[name]) for name in own)),
        "skin_de": float(toon.delta_e(own["skin"], theirs["skin"])),
        "flicker_ratio": toon.flicker(made) / max(toon.flicker(true), 1e-6),
        "blinks_per_minute": toon.blinks(made) / minutes,
        "true_blinks_per_minute": toon.blinks(true) / minutes,
        "sway_ratio": spread(head) / max(spread(wanted), 1e-6),
    }


def spread(path: np.ndarray) -> float:
    """How far a head strays from its mean place, in face units."""
    return float(np.hypot(*path.std(0)))


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two curves; 0 where one of them does not move."""
    if len(a) < 2 or a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def best_lag(made: np.ndarray, true: np.ndarray) -> tuple[int, float]:
    """By how many frames the made curve comes late (negative: early) where both agree best, and how well."""
    found = []
    for lag in LAGS:
        late, early = made[max(lag, 0) : len(made) + min(lag, 0)], true[max(-lag, 0) : len(true) - max(lag, 0)]
        found.append((pearson(late, early), lag))
    r, lag = max(found)
    return lag, r


def picture(made: Frames, true: Frames, shift: np.ndarray) -> tuple[float, float]:
    """PSNR and SSIM of the head, moved to where the true head is; eyes and frames with a blink are left out.

    shift: how far right and down of the true head the made one is, in face units.
    """
    height, width = made.shape[1:3]
    unit, middle = toon.face_unit(height, width), (width / 2, height / 2)
    theta = torch.zeros(len(made), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, :, 2] = torch.from_numpy(shift * unit * (2 / width, 2 / height)).float()
    grid = torch.nn.functional.affine_grid(theta, [len(made), 3, height, width], align_corners=False)
    a = torch.nn.functional.grid_sample(_tensor(made), grid, padding_mode="border", align_corners=False)
    b = _tensor(true).clone()
    awake = torch.from_numpy((toon.eye_openness(made) > SHUT) & (toon.eye_openness(true) > SHUT))
    if not awake.any():
        return float("nan"), float("nan")
    eyes = _box(height, width, unit, middle, (-0.66, -0.42, 0.66, 0.2))
    b[:, :, eyes[0], eyes[1]] = a[:, :, eyes[0], eyes[1]]
    rows, columns = _box(height, width, unit, middle, (-1.0, -1.1, 1.0, 1.15))
    a, b = a[awake][:, :, rows, columns], b[awake][:, :, rows, columns]
    seen = torch.ones(rows.stop - rows.start, columns.stop - columns.start, dtype=torch.bool)
    seen[eyes[0].start - rows.start : eyes[0].stop - rows.start, eyes[1].start - columns.start : eyes[1].stop - columns.start] = False  # fmt: skip  # noqa: E501
    error = (a - b).square().mean(1)[:, seen].mean(1)
    structure = ssim(a, b, data_range=1.0, reduction="none", return_full_image=True)[1].mean(1)[:, seen].mean(1)
    return float(-10 * error.clamp_min(1e-10).log10().mean()), float(structure.mean())


def decibels(made: np.ndarray, true: np.ndarray) -> float:
    """PSNR of whole pictures as they are, mean over frames."""
    error = np.square((made - true) / 255).mean(axis=(1, 2, 3))
    return float(np.mean(-10 * np.log10(np.maximum(error, 1e-10))))


def _tensor(frames: Frames) -> torch.Tensor:
    return torch.from_numpy(frames.astype(np.float32) / 255).permute(0, 3, 1, 2)


def _box(
    height: int, width: int, unit: float, middle: tuple[float, float], corners: tuple[float, float, float, float]
) -> tuple[slice, slice]:
    """Rows and columns of a rectangle in face units around the middle."""
    left, top, right, bottom = corners
    rows = slice(max(0, round(middle[1] + top * unit)), min(height, round(middle[1] + bottom * unit)))
    return rows, slice(max(0, round(middle[0] + left * unit)), min(width, round(middle[0] + right * unit)))
