"""Pictures of a face in motion: still parts are drawn once and moved, eyes, brows and mouth are drawn in each frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import grid_sample

from liveavatar.metrics.toon import face_unit
from liveavatar.training.toon import features
from liveavatar.training.toon.identity import Identity
from liveavatar.training.toon.motion import Motion
from liveavatar.training.toon.parts import BROW_Y, EYE_Y, MOUTH_Y, NOSE_Y, Layer, draw_parts

CHUNK = 12
"""Frames drawn at once: few enough to stay in the processor's cache."""

PIVOT_Y = 0.95
"""The head rolls about the neck."""

PARALLAX = 0.085
JAW_DROP = 0.07


@dataclass(frozen=True)
class Layout:
    """Where the face lies in a picture of `height` x `width` pixels: `unit` pixels per face unit, middle at (x, y)."""

    height: int
    width: int

    def __post_init__(self) -> None:
        for side in (self.height, self.width):
            if side < 32 or side % 16:
                raise ValueError(
                    f"size={self.height, self.width}: both sides must be multiples of 16, 32 or more. "
                    f"Type for instance size=(128, 128)."
                )

    @property
    def unit(self) -> float:
        return face_unit(self.height, self.width)

    @property
    def x(self) -> float:
        return self.width / 2

    @property
    def y(self) -> float:
        return self.height / 2 - 0.01 * self.unit

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the picture in face units."""
        left, top = -self.x / self.unit, -self.y / self.unit
        return left, top, left + self.width / self.unit, top + self.height / self.unit


@lru_cache(maxsize=8)
def _layers(who: Identity, layout: Layout) -> dict[str, tuple[Tensor, Layer]]:
    parts = draw_parts(who, layout.frame, layout.unit)
    return {name: (torch.from_numpy(layer.pixels.transpose(2, 0, 1).copy()), layer) for name, layer in parts.items()}


def render(
    identity: Identity,
    motion: Motion,
    size: tuple[int, int] = (128, 128),
    frames: slice | None = None,
    device: str | torch.device = "cpu",
) -> UInt8[np.ndarray, "t H W 3"]:
    """Draw a face in motion.

    Args:
        identity: whose face.
        motion: its curves; `frames` picks some of them (all by default).
        size: height and width, multiples of 16.
        device: where the pixels are computed; they come back to the host.

    Raises:
        ValueError: for a size that cannot be drawn.
    """
    layout = Layout(*size)
    motion = motion if frames is None else motion[frames]
    parts = _layers(identity, layout)
    if torch.device(device).type != "cpu":
        parts = {name: (pixels.to(device), layer) for name, (pixels, layer) in parts.items()}
    out = np.empty((len(motion), *size, 3), np.uint8)
    with torch.inference_mode():
        for start in range(0, len(motion), CHUNK):
            part = motion[start : start + CHUNK]
            out[start : start + CHUNK] = _Scene(identity, part, layout, parts, torch.device(device)).drawn()
    return out


def render_still(identity: Identity, size: tuple[int, int] = (128, 128)) -> UInt8[np.ndarray, "H W 3"]:
    """The portrait: neutral, eyes open, mouth shut."""
    return render(identity, Motion.neutral(1), size)[0]


class _Scene:
    """A few frames being drawn, [3, t, H, W]."""

    def __init__(
        self,
        who: Identity,
        motion: Motion,
        layout: Layout,
        parts: dict[str, tuple[Tensor, Layer]],
        device: torch.device,
    ) -> None:
        self.who, self.motion, self.layout, self.parts, self.device = who, motion, layout, parts, device
        self.light = torch.from_numpy(motion.light).to(device).T[:, :, None, None]
        self._curves: dict[str, Tensor] = {}

    def curve(self, name: str) -> Tensor:
        if name not in self._curves:
            self._curves[name] = torch.from_numpy(getattr(self.motion, name)).to(self.device)[:, None, None]
        return self._curves[name]

    def drawn(self) -> np.ndarray:
        backdrop = self.parts["backdrop"][0][:3, None]
        self.canvas = (backdrop * self.light**0.6).clamp(0, 1).contiguous()
        self._place("hair_back")
        self._place("torso")
        self._place("head")
        self._place("face")
        who = self.who
        with_room = 0.16
        for side in (-1, 1):
            x, w, h = side * who.eye_gap, who.eye_width * 1.12, who.eye_height * 1.35 + 0.06
            patch = self._patch((x - w, EYE_Y - h, x + w, EYE_Y + h))
            features.draw_eyes(who, patch, side, self.curve)
            patch = self._patch((x - 0.3, BROW_Y - 0.28, x + 0.3, BROW_Y + with_room))
            features.draw_brow(who, patch, side, self.curve)
        reach = who.mouth_width * 1.45
        drop = features.APERTURE * (1 - features.UPPER_SHARE) * float(self.motion.opening.max())
        patch = self._patch((-reach, MOUTH_Y - 0.3, reach, MOUTH_Y + with_room + drop))
        features.draw_mouth(who, patch, self.curve)
        self._place("glasses")
        self._place("hair_front")
        shown = (self.canvas * self.light**0.4 * 255 + 0.5).clamp(0, 255).to(torch.uint8)
        return shown.permute(1, 2, 3, 0).contiguous().cpu().numpy()

    def _window(
        self, box: tuple[float, float, float, float], depth: float, still: bool = False
    ) -> tuple[slice, slice] | None:
        """Rows and columns in which a box in face units may lie in any of the frames."""
        corners = np.array([(box[0], box[1]), (box[2], box[1]), (box[2], box[3]), (box[0], box[3])])
        x, y = to_picture(corners[:, 0], corners[:, 1], self.motion, self.layout, depth, 0.3 if still else 1.0)
        top, bottom = int(np.floor(y.min())) - 1, int(np.ceil(y.max())) + 2
        left, right = int(np.floor(x.min())) - 1, int(np.ceil(x.max())) + 2
        top, left = max(top, 0), max(left, 0)
        bottom, right = min(bottom, self.layout.height), min(right, self.layout.width)
        return (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None

    def _coordinates(self, rows: slice, columns: slice, depth: float, follow: float = 1.0) -> tuple[Tensor, Tensor]:
        """Face coordinates [t, h, w] of the pixels of a window."""
        layout = self.layout
        x = (torch.arange(columns.start, columns.stop, device=self.device) + (0.5 - layout.x)) / layout.unit
        y = (torch.arange(rows.start, rows.stop, device=self.device) + (0.5 - layout.y)) / layout.unit
        x = x[None, None, :] - self.curve("x") * follow
        y = y[None, :, None] - self.curve("y") * follow - PIVOT_Y
        roll = self.curve("roll") * follow
        c, s = torch.cos(roll), torch.sin(roll)
        shift = PARALLAX * depth
        return c * x + s * y - shift * self.curve("turn"), c * y - s * x + PIVOT_Y - shift * self.curve("nod")

    def _patch(self, box: tuple[float, float, float, float]) -> features.Patch:
        rows, columns = self._window(box, 1.0) or (slice(0, 1), slice(0, 1))
        x, y = self._coordinates(rows, columns, 1.0)
        return features.Patch(self.canvas[:, :, rows, columns], x, y, 1 / self.layout.unit)

    def _place(self, name: str) -> None:
        """Lay a sheet over the canvas where the head is."""
        pixels, layer = self.parts[name]
        still = name == "torso"
        if not pixels.numel():
            return
        left, top, right, bottom = layer.box
        window = self._window((left, top, right, bottom + JAW_DROP), layer.depth, still)
        if window is None:
            return
        x, y = self._coordinates(*window, layer.depth, 0.3 if still else 1.0)
        if layer.jaw:
            y = y - JAW_DROP * self.curve("opening") * ((y - 0.35) / 0.6).clamp(0, 1) ** 2
        grid = torch.stack([(x - left) * (2 / (right - left)) - 1, (y - top) * (2 / (bottom - top)) - 1], dim=-1)
        t, h, w, _ = grid.shape
        found = grid_sample(pixels[None], grid.view(1, t * h, w, 2), padding_mode="zeros", align_corners=False)
        found = found.view(4, t, h, w)
        view = self.canvas[:, :, window[0], window[1]]
        view.mul_(1 - found[3]).add_(found[:3])


def to_picture(
    x: np.ndarray, y: np.ndarray, motion: Motion, layout: Layout, depth: float = 1.0, follow: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Where points of the face (x, y in face units, [n] or [t, n]) are in the picture, in pixels: two of [t, n].

    The middle of the pixel in row 0, column 0 is at (0.5, 0.5). `follow` is the share of the head's movement.
    """
    turn, nod, roll, mx, my = (
        getattr(motion, name).astype(np.float64)[:, None] for name in ("turn", "nod", "roll", "x", "y")
    )
    c, s = np.cos(roll * follow), np.sin(roll * follow)
    px, py = x + PARALLAX * depth * turn, y + PARALLAX * depth * nod - PIVOT_Y
    return (
        (c * px - s * py + mx * follow) * layout.unit + layout.x,
        (s * px + c * py + PIVOT_Y + my * follow) * layout.unit + layout.y,
    )


def landmarks(identity: Identity, motion: Motion, size: tuple[int, int] = (128, 128)) -> dict[str, np.ndarray]:
    """Where the parts of the face are, in pixels (x, y), float64 [t, 2] each, and the mouth's measures [t].

    `eye_left` (left in the picture), `eye_right`, `brow_left`, `brow_right`, `nose`, `chin`, `mouth_left`,
    `mouth_right` (where the lips' inner edges end), `mouth_top`, `mouth_bottom` (the inner edges' middles: as far apart
    as the mouth is open), `mouth` (half-way between the corners), `head` (the middle of the face), and `opening_px`,
    `width_px`, `unit_px`.
    """
    layout = Layout(*size)

    def curve(name: str) -> Tensor:
        return torch.from_numpy(getattr(motion, name)).double()[:, None]

    lips = features.mouth_curves(identity, torch.zeros(len(motion), 1, dtype=torch.float64), curve)
    ends = features.mouth_curves(identity, torch.ones(len(motion), 1, dtype=torch.float64), curve)
    half, corner, gap = (part.numpy() for part in (lips["half"], ends["corner"], lips["gap"]))
    zero = np.zeros_like(half)
    brow = BROW_Y - 0.12 * motion.brow[:, None] - identity.brow_arch
    chin = 1 + JAW_DROP * motion.opening[:, None]
    places = {
        "eye_left": (zero - identity.eye_gap, zero + EYE_Y, 1.0),
        "eye_right": (zero + identity.eye_gap, zero + EYE_Y, 1.0),
        "brow_left": (zero - identity.eye_gap, zero + brow, 1.0),
        "brow_right": (zero + identity.eye_gap, zero + brow, 1.0),
        "nose": (zero, zero + NOSE_Y, 1.0),
        "chin": (zero, zero + chin, 0.15),
        "mouth_left": (-half, corner, 1.0),
        "mouth_right": (half, corner, 1.0),
        "mouth_top": (zero, lips["upper"].numpy(), 1.0),
        "mouth_bottom": (zero, lips["lower"].numpy(), 1.0),
        "mouth": (zero, corner, 1.0),
        "head": (zero, zero, 0.15),
    }
    found = {
        name: np.concatenate(to_picture(x, y, motion, layout, depth), axis=1) for name, (x, y, depth) in places.items()
    }
    found["opening_px"] = gap[:, 0] * layout.unit
    found["width_px"] = 2 * half[:, 0] * layout.unit
    found["unit_px"] = np.full(len(motion), layout.unit)
    return found
