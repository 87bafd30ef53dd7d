"""Paper and brushes for what does not change in a picture: smooth masks of curves, shaded, laid over one another."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFilter

from liveavatar.training.toon.identity import Colour

_FINE = 2
"""Masks are drawn at this many times the resolution of the sheet and then averaged."""

Points = np.ndarray | list[tuple[float, float]]


def smooth(points: Points, closed: bool = True, steps: int = 10) -> Float[np.ndarray, "n 2"]:
    """A curve through the points (Catmull-Rom)."""
    p = np.asarray(points, np.float64)
    if closed:
        p = np.concatenate([p[-1:], p, p[:2]])
    else:
        p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    t = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    curve = curve.transpose(1, 0, 2).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-2:-1]])


def mirrored(right: Points) -> Float[np.ndarray, "n 2"]:
    """A closed outline from its right half, given from top to bottom."""
    half = np.asarray(right, np.float64)
    left = half[::-1] * (-1, 1)
    keep = np.ones(len(half), bool)
    keep[0] = half[-1, 0] != 0
    keep[-1] = half[0, 0] != 0
    return np.concatenate([half, left[keep]])


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Float[np.ndarray, "n 2"]:
    a = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    px, py = rx * np.cos(a), ry * np.sin(a)
    c, s = np.cos(turn), np.sin(turn)
    return np.stack([x + c * px - s * py, y + s * px + c * py], axis=1)


class Sheet:
    """A transparent picture over the rectangle (left, top, right, bottom) in face units, `scale` pixels per unit.

    Colours are premultiplied by alpha: `pixels` is float32 [h, w, 4].
    """

    def __init__(self, box: tuple[float, float, float, float], scale: float) -> None:
        self.left, self.top = box[0], box[1]
        self.scale = scale
        self.width = max(2, round((box[2] - box[0]) * scale))
        self.height = max(2, round((box[3] - box[1]) * scale))
        self.pixels = np.zeros((self.height, self.width, 4), np.float32)
        self.x = (self.left + (np.arange(self.width, dtype=np.float32) + 0.5) / scale)[None, :]
        self.y = (self.top + (np.arange(self.height, dtype=np.float32) + 0.5) / scale)[:, None]

    @property
    def box(self) -> tuple[float, float, float, float]:
        return self.left, self.top, self.left + self.width / self.scale, self.top + self.height / self.scale

    def shape(self, *outlines: Points, blur: float = 0.0) -> Float[np.ndarray, "h w"]:
        """Coverage of the union of polygons, 0 to 1; `blur` in face units."""
        return self._drawn([(np.asarray(outline), None) for outline in outlines], blur)

    def strokes(self, lines: list[Points], width: float, blur: float = 0.0) -> Float[np.ndarray, "h w"]:
        """Coverage of lines of a width in face units."""
        return self._drawn([(np.asarray(line), width) for line in lines], blur)

    def soft(self, x: float, y: float, rx: float, ry: float) -> Float[np.ndarray, "h w"]:
        """A round spot that fades: 1 in the middle, 0.37 at its radius."""
        return np.exp(-(((self.x - x) / rx) ** 2) - ((self.y - y) / ry) ** 2)

    def blurred(self, mask: np.ndarray, blur: float) -> Float[np.ndarray, "h w"]:
        return _blurred(mask, blur * self.scale)

    def over(self, mask: np.ndarray, colour: Colour | np.ndarray, opacity: float = 1.0) -> None:
        """Lay a colour over the sheet where the mask is."""
        place = _extent(mask)
        pixels, alpha = self.pixels[place], (mask[place] * opacity)[..., None].astype(np.float32)
        pixels += alpha * (np.array([*colour, 1.0], np.float32) - pixels)

    def tint(self, mask: np.ndarray, colour: Colour | np.ndarray, opacity: float = 1.0) -> None:
        """Like `over`, only on what is already painted."""
        place = _extent(mask)
        pixels, alpha = self.pixels[place], (mask[place] * opacity)[..., None].astype(np.float32)
        pixels[..., :3] += alpha * (np.asarray(colour, np.float32) * pixels[..., 3:] - pixels[..., :3])

    def darken(self, mask: np.ndarray, gain: Colour, opacity: float = 1.0) -> None:
        """Multiply what is painted by a colour below 1 where the mask is: a shadow."""
        place = _extent(mask)
        alpha = (mask[place].clip(0, 1) * opacity)[..., None].astype(np.float32)
        self.pixels[place][..., :3] *= 1 + (np.asarray(gain, np.float32) - 1) * alpha

    @property
    def alpha(self) -> Float[np.ndarray, "h w"]:
        return self.pixels[..., 3]

    def _drawn(self, items: list[tuple[np.ndarray, float | None]], blur: float) -> Float[np.ndarray, "h w"]:
        fine = self.scale * _FINE
        image = Image.new("L", (self.width * _FINE, self.height * _FINE))
        draw = ImageDraw.Draw(image)
        for points, width in items:
            flat = ((points - (self.left, self.top)) * fine).ravel().tolist()
            if width is None:
                draw.polygon(flat, fill=255)
            else:
                draw.line(flat, fill=255, width=max(1, round(width * fine)), joint="curve")
        mask = np.asarray(image.reduce(_FINE), np.float32) / 255
        return _blurred(mask, blur * self.scale) if blur else mask


def _blurred(mask: np.ndarray, radius: float) -> Float[np.ndarray, "h w"]:
    if radius < 0.2:
        return mask
    image = Image.fromarray((mask * 255).clip(0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def _extent(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that the mask touches: most masks are small."""
    seen = mask > 0.002
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
