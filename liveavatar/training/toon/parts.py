"""The parts of a portrait that do not change in a clip, each on a sheet of its own with its depth.

Depth says how far a part follows when the head turns or nods: 0 the axis of the head, 1 the face, negative behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from liveavatar.training.toon.canvas import Sheet, ellipse
from liveavatar.training.toon.clothes import draw_torso
from liveavatar.training.toon.hair import draw_hair
from liveavatar.training.toon.head import draw_face, draw_glasses, draw_head
from liveavatar.training.toon.identity import Identity, mix

_HEAD_BOX = (-1.55, -1.7, 1.55, 1.85)


@dataclass(frozen=True)
class Layer:
    """One sheet: premultiplied `pixels` [h, w, 4] over `box` in face units."""

    pixels: np.ndarray
    box: tuple[float, float, float, float]
    depth: float
    jaw: bool = False  # its lower part follows the jaw


def draw_parts(who: Identity, frame: tuple[float, float, float, float], scale: float) -> dict[str, Layer]:
    """All layers, from back to front. `frame` is the picture's rectangle in face units, `scale` its pixels per unit."""
    fine = scale * 2
    backdrop = Sheet(frame, scale)
    _draw_backdrop(who, backdrop)
    torso = Sheet((max(frame[0] - 0.3, -2.2), 0.55, min(frame[2] + 0.3, 2.2), max(frame[3], 1.2) + 0.3), fine)
    draw_torso(who, torso)
    hair_back, hair_front, head, face, glasses = (Sheet(_HEAD_BOX, fine) for _ in range(5))
    draw_hair(who, hair_back, hair_front)
    draw_head(who, head, hair_front.alpha)
    draw_face(who, face)
    draw_glasses(who, glasses)
    return {
        "backdrop": Layer(backdrop.pixels, backdrop.box, 0.0),
        "hair_back": _cropped(hair_back, -0.45),
        "torso": _cropped(torso, 0.0),
        "head": _cropped(head, 0.15, jaw=True),
        "face": _cropped(face, 1.0, jaw=True),
        "glasses": _cropped(glasses, 1.08),
        "hair_front": _cropped(hair_front, 0.4),
    }


def _cropped(sheet: Sheet, depth: float, jaw: bool = False) -> Layer:
    rows, columns = np.nonzero(sheet.alpha.max(1) > 0.003)[0], np.nonzero(sheet.alpha.max(0) > 0.003)[0]
    if not len(rows):
        return Layer(np.zeros((0, 0, 4), np.float32), sheet.box, depth, jaw)
    # one transparent pixel around it, so that its border is not smeared
    pixels = np.pad(sheet.pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], ((1, 1), (1, 1), (0, 0)))
    left, top = sheet.left + (columns[0] - 1) / sheet.scale, sheet.top + (rows[0] - 1) / sheet.scale
    box = (left, top, left + pixels.shape[1] / sheet.scale, top + pixels.shape[0] / sheet.scale)
    return Layer(pixels, box, depth, jaw)


def _draw_backdrop(who: Identity, sheet: Sheet) -> None:
    full = np.ones((sheet.height, sheet.width), np.float32)
    light = mix(who.back, (1, 1, 1), 0.45)
    sheet.over(full, who.back)
    fall = np.clip((sheet.y + 1.2) / 2.9, 0, 1) * full
    if who.backdrop == "glow":
        sheet.over(fall, who.back2, 0.55)
        sheet.over(sheet.soft(who.light_side * 0.5, -0.5, 1.5, 1.5), light, 0.8)
    elif who.backdrop == "dusk":
        sheet.over(fall**0.8, who.back2, 0.9)
        for x, y, r in ((-1.1, -0.8, 0.22), (1.15, -1.05, 0.16), (0.95, -0.25, 0.28), (-1.25, 0.25, 0.16)):
            sheet.over(sheet.shape(ellipse(x, y, r, r), blur=0.03), light, 0.35)
    elif who.backdrop == "circle":
        sheet.over(fall, who.back2, 0.25)
        sheet.over(sheet.shape(ellipse(0, 0.0, 1.32, 1.32), blur=0.01), mix(who.back2, who.back, 0.25), 0.9)
        sheet.over(sheet.soft(who.light_side * 0.6, -0.7, 0.9, 0.9), light, 0.5)
    elif who.backdrop == "window":
        x = who.light_side * 1.0
        sheet.over(fall, who.back2, 0.6)
        panes = [
            np.array([(x + a, b), (x + a + 0.44, b), (x + a + 0.44, b + 0.62), (x + a, b + 0.62)])
            for a in (-0.48, 0.03)
            for b in (-1.25, -0.56)
        ]
        sheet.over(sheet.shape(*panes, blur=0.03), light, 0.85)
    else:
        sheet.over(fall, who.back2, 0.4)
        stripe = 0.5 + 0.5 * np.sin((sheet.x + 0 * sheet.y) * 9)
        sheet.over(stripe.astype(np.float32) ** 4, light, 0.22)
        sheet.over(sheet.soft(who.light_side, -0.9, 1.3, 1.3), light, 0.55)
    far = np.hypot(sheet.x / max(-sheet.left, 1.3), sheet.y / 1.6)
    sheet.darken(np.clip(far - 0.75, 0, 1), (0.62, 0.62, 0.68), 0.6)
