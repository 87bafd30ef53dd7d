"""What a drawn face does, read from the picture alone: mouth, eyes, head, colours (see `training.toon`).

Everything here works on frames uint8 [t, H, W, 3] of a toon in its usual framing (its portrait's), whoever drew them:
the renderer, a decoder, a model. The mouth is found by its colours, which no other part of a toon has (much more red
than green, and more blue than green). Lengths are in face units (`face_unit`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.nn.functional import grid_sample

Frames = UInt8[np.ndarray, "t H W 3"]
Curve = Float[np.ndarray, " t"]

APERTURE = 0.32
"""Height of a mouth that is open all the way, in face units: `mouth_opening` 1."""


def face_unit(height: int, width: int) -> float:
    """Pixels from the middle of the face to the tip of the chin, in a picture of this size."""
    return min(0.335 * height, 0.365 * width)


def _scale(frames: Frames) -> tuple[float, float, float]:
    """Pixels per face unit, and the column and row of the middle of the face at rest."""
    height, width = frames.shape[1:3]
    unit = face_unit(height, width)
    return unit, width / 2, height / 2 - 0.01 * unit


def _window(frames: Frames, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice]:
    """Rows and columns of a rectangle in face units."""
    unit, x, y = _scale(frames)
    rows = slice(max(0, round(y + top * unit)), min(frames.shape[1], round(y + bottom * unit)))
    return rows, slice(max(0, round(x + left * unit)), min(frames.shape[2], round(x + right * unit)))


def _lipness(pixels: np.ndarray, low: float = 0.04, high: float = 0.12) -> np.ndarray:
    """0 to 1: is this the colour of lips, tongue or the inside of the mouth? For pixels 0 to 1, [..., 3]."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    crimson = (blue - green) + 0.25 * (red - green)
    return ((crimson - low) / (high - low)).clip(0, 1) * ((red - green - 0.08) / 0.08).clip(0, 1)


@dataclass(frozen=True)
class Mouth:
    """A mouth in every frame, in face units; nothing but zeros where none is found.

    `opening` is the height of the gap between the lips as a share of `APERTURE`; `x`, `y` the middle of its upper edge,
    from the top left of the picture; `width` across; `corners` how far its corners lie above the middle of its line.
    """

    found: np.ndarray
    opening: Curve
    x: Curve
    y: Curve
    width: Curve
    corners: Curve


def mouth(frames: Frames) -> Mouth:
    """Measure the mouth in each frame."""
    unit, _, _ = _scale(frames)
    rows, columns = _window(frames, -0.62, 0.18, 0.62, 1.12)
    pixels = frames[:, rows, columns].astype(np.float32) / 255
    lips = _lipness(pixels)
    lip_red, lip_green = _lip_levels(pixels, lips)
    y, x = np.arange(lips.shape[1]) + 0.5, np.arange(lips.shape[2]) + 0.5
    found = np.zeros((6, len(frames)))
    for number, (part, mask) in enumerate(zip(pixels, lips, strict=True)):
        across = np.where(mask > 0.35, mask, 0).sum(0)
        if mask.sum() < (0.06 * unit) ** 2 or across.max() == 0:
            continue
        middle = float((across * x).sum() / across.sum())
        share = np.cumsum(across) / across.sum()
        left, right = (float(np.interp(q, share, x)) for q in (0.02, 0.98))
        central = slice(max(0, int(middle - 0.09 * unit)), int(middle + 0.09 * unit) + 1)
        gap, top = _gap(part[:, central].mean(1), lip_red, lip_green)
        corners = _bend(mask, (x - middle) / (0.3 * unit), y / unit) - 0.28 * gap / unit
        found[:, number] = (1, gap / unit / APERTURE, (columns.start + middle) / unit, (rows.start + top) / unit,
                            (right - left) / unit, corners)  # fmt: skip
    return Mouth(found[0] > 0, *found[1:])


def _bend(mask: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """How far the mouth's middle line rises from x = 0 to 1 and -1: a parabola through it, by least squares."""
    weight = np.where(mask > 0.35, mask, 0).sum(0)
    seen = weight > 0.5
    if seen.sum() < 4:
        return 0.0
    line = (np.where(mask > 0.35, mask, 0) * y[:, None]).sum(0)[seen] / weight[seen]
    terms = np.stack([np.ones(seen.sum()), x[seen], x[seen] ** 2], axis=1)
    share = np.sqrt(weight[seen])[:, None]
    return -float(np.linalg.lstsq(terms * share, line * share[:, 0], rcond=None)[0][2])


def _lip_levels(pixels: np.ndarray, lips: np.ndarray) -> tuple[float, float]:
    """Red and green of the lips themselves, the brightest of what has the mouth's colours, over the whole clip."""
    strong = pixels[lips > 0.8]
    if not len(strong):
        return 0.75, 0.35
    bright = strong[strong[:, 0] > np.quantile(strong[:, 0], 0.75)]
    bright = bright if len(bright) else strong  # all alike, as where red is saturated
    return float(np.median(bright[:, 0])), float(np.median(bright[:, 1]))


def _gap(profile: np.ndarray, lip_red: float, lip_green: float) -> tuple[float, float]:
    """Height of what is between the lips, and the row where the upper lip begins, in pixels.

    Each row of the profile down the middle of the mouth is a mixture of lip, inside
    and teeth (a blurred one too): least squares tells their shares, which add up to 1.
    """
    mask = _lipness(profile, 0.0, 0.06)
    marked = np.flatnonzero(mask > 0.5)
    if len(marked) < 2:
        return 0.0, float(marked[0]) if len(marked) else 0.0
    first, last = marked[0], marked[-1]
    top = first - float(mask[first - 1] if first else 0.0)  # the edge within the pixel
    inside = profile[first + 1 : last]
    lip = 0.96 * np.array([lip_red, lip_green, lip_green + 0.1])
    parts = np.stack([lip, (0.43 * lip_red, 0.02, 0.15), (0.95, 0.95, 0.95)])
    parts = np.concatenate([parts, np.ones((3, 1))], axis=1)
    shares = np.concatenate([inside, np.ones((len(inside), 1))], axis=1) @ np.linalg.pinv(parts)
    open_share = shares[:, 1:].clip(0, 1).sum(1)
    # shading of the lips and the line where they meet are no gap
    return float(((open_share - 0.2) / 0.8).clip(0, 1).sum()), top


def mouth_opening(frames: Frames) -> Curve:
    """How far the mouth is open: the height of the gap between the lips, 0 shut to about 1; 0 where none is found."""
    return mouth(frames).opening


def smile(frames: Frames) -> Curve:
    """How far the corners of the mouth lie above its middle, in face units: about -0.09 (sad) to 0.15 (happy)."""
    return mouth(frames).corners


def eye_openness(frames: Frames) -> Curve:
    """How much of both eyes is seen, against when they are open in this clip: about 1 open, below 0.5 shut.

    The mean difference in colour from the skin around each eye: whites and pupils differ much from any skin, and of a
    shut eye only the lashes do.
    """
    unit, _, _ = _scale(frames)
    steady = frames.astype(np.float32).transpose(3, 0, 1, 2) / 255
    head = sway(frames) * unit
    steady = torch.stack([_moved(torch.from_numpy(channel)[:, None], head)[:, 0] for channel in steady]).numpy()
    seen = np.zeros(len(frames))
    for middle in (-0.37, 0.37):
        rows, columns = _window(frames, middle - 0.17, -0.11, middle + 0.17, 0.17)
        around, _ = _window(frames, 0, 0.19, 0, 0.25)
        skin = np.median(steady[:, :, around, columns], axis=(2, 3))
        seen += np.abs(steady[:, :, rows, columns] - skin[:, :, None, None]).mean((0, 2, 3))
    widest = float(np.quantile(seen, 0.8)) if len(seen) else 0.0
    return seen / widest if widest > 1e-3 else np.zeros_like(seen)


def blinks(frames: Frames) -> int:
    """How often the eyes shut: openness below 0.58 after having been above 0.78."""
    count, ready = 0, False
    for value in eye_openness(frames):
        if ready and value < 0.58:
            count, ready = count + 1, False
        elif value > 0.78:
            ready = True
    return count


def sway(frames: Frames, reference: UInt8[np.ndarray, "H W 3"] | None = None) -> Float[np.ndarray, "t 2"]:
    """Where the head is (right, down), in face units from where it is in the reference, or else in the first frame.

    The eyes, brows and nose are registered by translation (Lucas and Kanade 1981, Gauss-Newton, coarse to fine).
    """
    unit, _, _ = _scale(frames)
    still, box = frames[:1] if reference is None else reference[None], (-0.72, -0.5, 0.72, 0.46)
    rows, columns = _window(frames, *box)
    shifts, target, moving = np.zeros((len(frames), 2)), _grey(still), _grey(frames)
    for blur in (0.16, 0.06):
        a, b = _blurred(target, blur * unit), _blurred(moving, blur * unit)
        patch = _evened(a[:, 0, rows, columns])[0]
        slope_y, slope_x = torch.gradient(patch)
        slopes = torch.stack([slope_x.flatten(), slope_y.flatten()], 1).double()
        normal = slopes.T @ slopes + 1e-3 * torch.eye(2, dtype=torch.float64)
        for _ in range(6):
            wrong = (_evened(_moved(b, shifts)[:, 0, rows, columns]) - patch).flatten(1).double()
            step = torch.linalg.solve(normal, slopes.T @ wrong.T).T.numpy()
            shifts = (shifts - step).clip(-0.45 * unit, 0.45 * unit)
    return shifts / unit


def risen(
    frames: Frames,
    still: UInt8[np.ndarray, "H W 3"],
    box: tuple[float, float, float, float],
    head: np.ndarray,
    reach: float,
) -> Curve:
    """How far up, in face units, the content of a box has moved in each frame, beyond the `sway` of its `head`.

    The best correlation of all heights within `reach`.
    """
    unit, _, _ = _scale(frames)
    rows, columns = _window(frames, *box)
    target = _evened(_blurred(_grey(still[None]), 0.04 * unit)[:, 0, rows, columns])[0]
    steady = _moved(_blurred(_grey(frames), 0.04 * unit), head * unit)[:, 0]
    far = round(reach * unit)
    heights = [up for up in range(-far, far + 1) if rows.start - up >= 0 and rows.stop - up <= steady.shape[1]]
    scores = torch.stack(
        [(_evened(steady[:, rows.start - up : rows.stop - up, columns]) * target).mean((1, 2)) for up in heights]
    )
    return np.array(heights)[scores.argmax(0).numpy()] / unit


def _evened(patches: torch.Tensor) -> torch.Tensor:
    patches = patches - patches.mean((1, 2), keepdim=True)
    return patches / patches.std((1, 2), keepdim=True).clamp(min=1e-3)


def _grey(frames: Frames) -> torch.Tensor:
    weights = np.array([0.3, 0.59, 0.11], np.float32) / 255
    return torch.from_numpy(frames.astype(np.float32) @ weights)[:, None]


def _blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    reach = max(1, round(2.5 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / max(sigma, 0.3)) ** 2)
    taps = taps / taps.sum()
    padded = torch.nn.functional.pad(images, (reach,) * 4, mode="replicate")
    across = torch.nn.functional.conv2d(padded, taps.view(1, 1, 1, -1))
    return torch.nn.functional.conv2d(across, taps.view(1, 1, -1, 1))


def _moved(images: torch.Tensor, shifts: np.ndarray) -> torch.Tensor:
    """Each image read `shifts` pixels further right and down."""
    t, _, h, w = images.shape
    theta = torch.zeros(t, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, :, 2] = torch.from_numpy(shifts * (2 / w, 2 / h)).float()
    grid = torch.nn.functional.affine_grid(theta, [t, 1, h, w], align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)


_SPOTS = {
    "skin": ((-0.5, 0.38), (0.5, 0.38), (0.0, 0.14)),
    "hair": ((0.0, -0.98), (-0.3, -0.95), (0.3, -0.95)),
    "clothes": ((-0.8, 1.42), (0.8, 1.42)),
    "background": ((-1.33, -1.1), (1.33, -1.1), (-1.33, -0.5), (1.33, -0.5)),
}


def identity_colours(frames: Frames) -> dict[str, Float[np.ndarray, " 3"]]:
    """Colour (RGB, 0 to 255) of skin, hair, clothes and background: medians over spots and time."""
    found = {}
    for name, spots in _SPOTS.items():
        patches = []
        for x, y in spots:
            rows, columns = _window(frames, x - 0.09, y - 0.07, x + 0.09, y + 0.07)
            patches.append(frames[:, rows, columns].reshape(-1, 3))
        found[name] = np.median(np.concatenate(patches), axis=0)
    return found


def delta_e(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, " ..."]:
    """Distance of two colours (sRGB, 0 to 255, [..., 3]) in CIELAB, D65: ΔE*ab of 1976. About 2.3 can just be seen."""
    return np.linalg.norm(_lab(np.asarray(a)) - _lab(np.asarray(b)), axis=-1)


def _lab(colour: np.ndarray) -> np.ndarray:
    share = colour.astype(np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / (0.95047, 1.0, 1.08883)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def flicker(frames: Frames) -> float:
    """Mean of |frame − mean of its two neighbours in time| over all pixels, 0 to 255: what shimmers."""
    if len(frames) < 3:
        return 0.0
    f = frames.astype(np.float32)
    return float(np.abs(f[1:-1] - (f[:-2] + f[2:]) / 2).mean())
