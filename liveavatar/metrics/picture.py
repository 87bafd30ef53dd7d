"""Numbers that one picture has, and numbers between two pictures: pure functions of frames uint8 [t, H, W, 3]."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

Frames = UInt8[np.ndarray, "t H W 3"]
Curve = Float[np.ndarray, " t"]
Grey = Float[Tensor, "t H W"]

WHITE = (0.95047, 1.0, 1.08883)
"""The white of CIELAB here: D65."""


def grey(frames: Frames) -> Grey:
    """Luma of BT.709 from gamma-coded pixels, 0 to 255."""
    weights = np.array([0.2126, 0.7152, 0.0722], np.float32)
    return torch.from_numpy(frames.astype(np.float32) @ weights)


def sharpness(pictures: Grey) -> Curve:
    """Variance of the Laplacian (4 neighbours), in grey levels squared: 0 for a flat picture, falls under any blur."""
    x = pictures
    if min(x.shape[1:]) < 3:
        return np.zeros(len(x))
    edges = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:] - 4 * x[:, 1:-1, 1:-1]
    return edges.flatten(1).var(1, correction=0).double().numpy()


def contrast(pictures: Grey) -> Curve:
    """Standard deviation of luma over the picture, in grey levels (RMS contrast)."""
    return pictures.flatten(1).std(1, correction=0).double().numpy()


def lab(frames: UInt8[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
    """CIELAB (D65) of sRGB pixels: L 0 to 100, a and b about -100 to 100."""
    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4).astype(np.float32)[frames]
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
        np.float32,
    )
    xyz = linear @ to_xyz.T / np.array(WHITE, np.float32)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def delta_e(a: Float[np.ndarray, "... 3"], b: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, ...]:
    """Distance of colours in CIELAB (CIE 1976): about 2.3 is just seen."""
    return np.sqrt(((a - b) ** 2).sum(-1))


def psnr(mse: float) -> float:
    """Decibels of a mean squared error in grey levels squared; infinite for equal pictures."""
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


def ssim(a: Grey, b: Grey) -> Curve:
    """Structural similarity of luma (Wang et al. 2004): Gaussian of 11 pixels and sigma 1.5, 1 for equal pictures.

    Sides below 11 pixels: the window shrinks to them.
    """
    size = min(11, *a.shape[1:])
    taps = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    kernel = torch.exp(-(taps**2) / (2 * 1.5**2))
    kernel /= kernel.sum()

    def local(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, kernel[None, None, :, None]), kernel[None, None, None, :])

    x, y = a[:, None].double(), b[:, None].double()
    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    both = local(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    map_ = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return map_.flatten(1).mean(1).numpy()
