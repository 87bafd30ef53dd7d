"""The parts of a face that move: eyes, brows and mouth, as bands between two curves with exactly antialiased edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from liveavatar.training.toon.identity import INNER_MOUTH, TEETH, TONGUE, Colour, Identity, mix, scaled
from liveavatar.training.toon.parts import BROW_Y, EYE_Y, MOUTH_Y

APERTURE = 0.32
"""Height of the widest open mouth, in face units: the same for every face, so that openings compare."""

REST_SMILE = 0.42
"""A face at rest looks a little friendly."""

UPPER_SHARE = 0.22
"""Share of the aperture above the line at which the lips meet."""

Shape = Callable[[str], Tensor]


@dataclass
class Patch:
    """A window of the picture: colours [3, t, h, w], and where its pixels lie in face units, x and y [t, h, w]."""

    colours: Tensor
    x: Tensor
    y: Tensor
    pixel: float  # size of a pixel in face units

    def band(self, upper: Tensor, lower: Tensor) -> Tensor:
        """How much of each pixel lies between two curves, upper above lower."""
        return ((lower - self.y) / self.pixel + 0.5).clamp(0, 1) - ((upper - self.y) / self.pixel + 0.5).clamp(0, 1)

    def disc(self, x: Tensor | float, y: Tensor | float, radius: Tensor | float) -> Tensor:
        far = torch.sqrt((self.x - x) ** 2 + (self.y - y) ** 2)
        return ((radius - far) / self.pixel + 0.5).clamp(0, 1)

    def soft(self, x: Tensor | float, y: Tensor | float, rx: Tensor | float, ry: Tensor | float) -> Tensor:
        return torch.exp(-(((self.x - x) / rx) ** 2) - ((self.y - y) / ry) ** 2)

    def over(self, mask: Tensor, colour: Colour, opacity: float = 1.0) -> None:
        mask = mask * opacity if opacity != 1.0 else mask
        for channel, value in zip(self.colours, colour, strict=True):
            channel += (value - channel) * mask


def _dome(s: Tensor, power: Tensor | float) -> Tensor:
    """1 in the middle, 0 from |s| = 1 on."""
    return (1 - s * s).clamp(min=0) ** power


def draw_eyes(who: Identity, patch: Patch, side: int, shape: Shape) -> None:
    """One eye: `side` -1 is the left one in the picture."""
    x, w = patch.x - side * who.eye_gap, who.eye_width
    s, out = x / w, (x / w) * side
    wide, blink = shape("wide"), shape("blink").clamp(0, 1)
    height = who.eye_height * (1 + 0.3 * wide)
    slant = EYE_Y - who.eye_tilt * out
    opened = slant - height * _dome(s, 0.58) * (1 + 0.06 * out)
    lower = slant + (0.78 + 0.22 * wide.clamp(max=0)) * who.eye_height * _dome(s, 0.7)
    shut = slant + 0.62 * who.eye_height * _dome(s, 0.7)
    upper = opened + (shut - opened) * blink
    lower = torch.maximum(lower - (lower - shut) * blink, upper)
    ball = patch.band(upper, lower)
    # the crease stays where the open lid ends
    crease = opened - 0.055
    line = patch.band(crease, crease + 0.016) * (s.abs() < 0.95)
    patch.over(line, scaled(who.skin, 0.66, 0.52, 0.48), 0.55)
    patch.over(ball, (0.985, 0.982, 0.975))
    patch.over(ball * patch.soft(side * who.eye_gap, opened, w * 1.6, 0.055), (0.74, 0.74, 0.79), 0.55)
    _draw_iris(who, patch, ball, side * who.eye_gap + 0.055 * shape("gaze_x"), EYE_Y + 0.005 + 0.035 * shape("gaze_y"))
    lash = scaled(mix(who.hair, (0.12, 0.08, 0.07), 0.8), 0.9)
    soft = 1 - who.grown
    reach = x / (w * (1.04 + 0.07 * soft))
    thick = (0.022 + 0.02 * soft) * (0.55 + 0.45 * reach * side).clamp(0.3, 1)
    wing = upper - 0.05 * soft * (out - 0.8).clamp(min=0) * 3
    patch.over(patch.band(wing - thick, wing + 0.01) * (reach.abs() < 1), lash)
    patch.over(patch.band(lower - 0.004, lower + 0.012) * (s.abs() < 0.9), scaled(who.skin, 0.6, 0.45, 0.42), 0.6)


def _draw_iris(who: Identity, patch: Patch, ball: Tensor, x: Tensor, y: Tensor) -> None:
    r = 0.69 * who.eye_width
    disc = ball * patch.disc(x, y, r)
    patch.over(disc, scaled(who.iris, 0.55))
    patch.over(ball * patch.disc(x, y, r * 0.86), who.iris)
    patch.over(disc * patch.soft(x, y + r * 0.62, r * 0.75, r * 0.5), mix(who.iris, (1, 0.98, 0.85), 0.55), 0.8)
    patch.over(ball * patch.disc(x, y, r * 0.48), (0.06, 0.05, 0.06))
    lit = who.light_side
    patch.over(ball * patch.disc(x + lit * r * 0.36, y - r * 0.4, r * 0.29), (1, 1, 1))
    patch.over(ball * patch.disc(x - lit * r * 0.38, y + r * 0.4, r * 0.14), (1, 1, 1), 0.8)


def draw_brow(who: Identity, patch: Patch, side: int, shape: Shape) -> None:
    frown = shape("frown")
    out = (patch.x * side - who.eye_gap - 0.015 + 0.03 * frown.clamp(min=0)) / 0.25
    inner = (0.5 - 0.5 * out).clamp(0, 1)
    y = BROW_Y - 0.12 * shape("brow") - who.brow_arch * (1 - (out - 0.2) ** 2)
    y = y - 0.05 * inner + frown * (0.13 * inner - 0.045) * torch.where(frown > 0, 1.0, 1.15)
    half = who.brow_weight * 0.5 * (1.05 - 0.6 * (out * 0.5 + 0.5).clamp(0, 1) ** 1.6) * _dome(out, 0.25)
    patch.over(patch.band(y - half, y + half), scaled(mix(who.hair, (0.2, 0.14, 0.1), 0.35), 0.8), 0.95)


def mouth_curves(who: Identity, s: Tensor, shape: Shape) -> dict[str, Tensor]:
    """The four edges of the lips over s (-1 to 1 between the corners), and half the mouth's width, in face units."""
    opening, rounding, smile = shape("opening").clamp(0, 1), shape("rounding").clamp(0, 1), shape("smile")
    half = who.mouth_width * (1 + 0.17 * shape("width") - 0.36 * rounding + 0.13 * smile.clamp(min=0))
    bend = smile + REST_SMILE
    corner = MOUTH_Y + 0.025 * bend - 0.105 * bend * s * s
    dome = _dome(s, 0.72 - 0.22 * rounding)
    gap = APERTURE * opening
    upper, lower = corner - UPPER_SHARE * gap * dome, corner + (1 - UPPER_SHARE) * gap * dome
    weight = who.lip_weight * (1 + 0.25 * rounding - 0.12 * smile.clamp(min=0))
    bow = 1 - 0.2 * torch.exp(-((s / 0.16) ** 2))
    rim = _dome(s / 1.1, 0.5)
    return {
        "half": half, "upper": upper, "lower": lower, "top": upper - 0.88 * weight * bow * rim,
        "bottom": lower + 1.0 * weight * rim, "gap": gap, "weight": weight, "corner": corner,
    }  # fmt: skip


def draw_mouth(who: Identity, patch: Patch, shape: Shape) -> None:
    opening, rounding = shape("opening").clamp(0, 1), shape("rounding").clamp(0, 1)
    half = mouth_curves(who, patch.x * 0, shape)["half"]
    s = patch.x / half
    c = mouth_curves(who, s, shape)
    lit = 0.21 + 0.1 * sum(who.lip)
    patch.over(patch.soft(0, c["bottom"] + 0.035, half * 0.6, 0.03), scaled(who.skin, 0.72, 0.58, 0.54), 0.45)
    for side in (-1, 1):  # dimples where the lips end
        patch.over(patch.soft(side * half * 1.08, c["corner"], 0.03, 0.03), scaled(who.skin, 0.62, 0.46, 0.42), 0.6)
    patch.over(patch.band(c["top"], torch.maximum(c["upper"], c["top"])), scaled(who.lip, 0.9))
    patch.over(patch.band(c["lower"], torch.maximum(c["bottom"], c["lower"])), who.lip)
    shine = patch.soft(who.light_side * 0.05, c["lower"] + 0.45 * c["weight"], half * 0.4, 0.02)
    patch.over(shine * patch.band(c["lower"], c["bottom"]), mix(who.lip, (1, 0.9, 0.92), lit), 0.8)
    inner = patch.band(c["upper"], c["lower"])
    patch.over(inner, INNER_MOUTH)
    gap, dome = c["gap"], _dome(s, 0.5)
    raised = c["lower"] - gap * (0.3 + 0.35 * shape("tongue")) * _dome(s / 0.8, 0.6)
    patch.over(inner * patch.band(raised, torch.maximum(c["lower"], raised)), TONGUE)
    patch.over(inner * patch.soft(0, c["lower"] - 0.3 * gap, 0.02, 0.09), scaled(TONGUE, 0.8), 0.5)
    shown = (0.16 + 0.75 * shape("teeth")) * (1 - 0.75 * rounding)
    teeth = torch.minimum(gap * shown, 0.045 + 0.045 * shape("teeth")) * dome
    patch.over(inner * patch.band(c["upper"], c["upper"] + teeth) * (s.abs() < 0.93), TEETH)
    seam = 0.5 * (c["upper"] + c["lower"])
    closed = (1 - opening * 14).clamp(min=0) * (s.abs() < 1)
    patch.over(patch.band(seam - 0.009, seam + 0.009) * closed, scaled(who.lip, 0.7), 0.8)
