"""Neck, shoulders and what is worn on them."""

from __future__ import annotations

import numpy as np

from liveavatar.training.toon.canvas import Sheet, ellipse, mirrored, smooth
from liveavatar.training.toon.identity import Identity, mix, scaled, shade


def draw_torso(who: Identity, sheet: Sheet) -> None:
    """The neck, in the chin's shadow, and the clothes."""
    neck, floor = 0.30 + 0.06 * who.grown, sheet.top + sheet.height / sheet.scale + 0.2
    wide = 1.12 + 0.2 * who.grown
    shadow = shade(who.skin)
    # cloth of the back collar, then the neck, then the front
    body = [
        (0, 1.16),
        (neck + 0.03, 1.08),
        (neck + 0.2, 1.18),
        (wide * 0.75, 1.28),
        (wide, 1.42),
        (wide + 0.14, 1.75),
        (wide + 0.2, floor),
        (0, floor),
    ]
    body_mask = sheet.shape(smooth(mirrored(body)))
    if who.clothes in ("shirt", "hoodie", "blazer"):
        sheet.over(sheet.shape(ellipse(0, 1.1, neck + 0.09, 0.16)), scaled(who.cloth, 0.6))
    skin = [(0, 0.6), (neck, 0.62), (neck, 0.98), (neck + 0.05, 1.12), (neck + 0.16, 1.22), (0, 1.5)]
    neck_mask = sheet.shape(smooth(mirrored(skin)))
    sheet.over(neck_mask, who.skin)
    chin = sheet.shape(ellipse(0, 0.66, 0.62, 0.46), blur=0.05)
    sheet.darken(chin, shadow, 0.9)
    sheet.darken(np.clip(sheet.x * who.light_side * -1.2 / neck, 0, 1) + 0 * sheet.y, shadow, 0.5)
    opening = _collar(who, neck)
    cloth = body_mask * (1 - sheet.shape(opening)) if opening is not None else body_mask
    sheet.over(cloth, who.cloth)
    sheet.darken(cloth * np.clip(sheet.x * -0.55 * who.light_side + 0.1, 0, 1), (0.62, 0.62, 0.68))
    sheet.darken(cloth * (1 - sheet.blurred(body_mask, 0.12)), (0.7, 0.7, 0.74), 0.8)
    sheet.darken(cloth * sheet.soft(0, 1.1, 0.55, 0.22), (0.66, 0.66, 0.72), 0.6)
    _dress(who, sheet, neck, cloth)


def _collar(who: Identity, neck: float) -> np.ndarray | None:
    if who.clothes == "turtleneck":
        return None
    if who.clothes == "vneck":
        return np.array([(-neck - 0.08, 1.0), (neck + 0.08, 1.0), (0, 1.5)])
    if who.clothes in ("shirt", "blazer"):
        return np.array([(-neck - 0.05, 1.0), (neck + 0.05, 1.0), (0, 1.36)])
    return ellipse(0, 1.08, neck + 0.06, 0.19)


def _dress(who: Identity, sheet: Sheet, neck: float, cloth: np.ndarray) -> None:
    edge, dark = mix(who.cloth, (1, 1, 1), 0.25), scaled(who.cloth, 0.72)
    if who.clothes == "turtleneck":
        roll = sheet.shape(
            smooth(mirrored([(0, 0.94), (neck + 0.06, 0.9), (neck + 0.09, 1.05), (neck + 0.1, 1.2), (0, 1.28)]))
        )
        sheet.over(roll, mix(who.cloth, (1, 1, 1), 0.08))
        sheet.darken(roll * sheet.soft(0, 0.86, 0.6, 0.16), (0.55, 0.55, 0.6), 0.9)
        sheet.darken(
            sheet.strokes([smooth([(-neck - 0.07, 1.1), (0, 1.17), (neck + 0.07, 1.1)], False)], 0.015),
            (0.75, 0.75, 0.8),
        )
    elif who.clothes in ("shirt", "blazer"):
        under = who.cloth2 if who.clothes == "blazer" else edge
        for side in (-1, 1):
            flap = np.array([(neck - 0.03, 0.98), (neck + 0.14, 1.12), (0.2, 1.47), (0.015, 1.33)]) * (side, 1)
            sheet.darken(sheet.shape(flap + np.array([0, 0.035]), blur=0.02) * cloth, (0.6, 0.6, 0.65), 0.8)
            sheet.over(sheet.shape(flap), under)
            if who.clothes == "blazer":
                lapel = np.array([(neck + 0.08, 1.06), (neck + 0.32, 1.17), (0.36, 1.5), (0.1, 1.9), (0.05, 1.75)]) * (
                    side,
                    1,
                )
                sheet.over(sheet.shape(lapel), mix(who.cloth, (0, 0, 0), 0.12))
                sheet.over(sheet.strokes([lapel[1:4]], 0.012), dark, 0.8)
        if who.clothes == "shirt":
            sheet.darken(sheet.strokes([[(0.0, 1.36), (0.0, 2.2)]], 0.016), (0.7, 0.7, 0.75))
    elif who.clothes == "hoodie":
        for side in (-1, 1):
            hood = smooth(
                [
                    (side * (neck + 0.02), 0.98),
                    (side * (neck + 0.24), 1.12),
                    (side * 0.3, 1.36),
                    (side * 0.04, 1.44),
                    (side * 0.2, 1.22),
                ]
            )
            sheet.over(sheet.shape(hood), mix(who.cloth, (1, 1, 1), 0.1))
            sheet.over(sheet.strokes([[(side * 0.14, 1.38), (side * 0.15, 1.7)]], 0.028), (0.96, 0.95, 0.9))
    else:
        rim = smooth([(-neck - 0.07, 1.08), (0, 1.285), (neck + 0.07, 1.08)], False)
        if who.clothes == "vneck":
            rim = np.array([(-neck - 0.09, 1.0), (0, 1.51), (neck + 0.09, 1.0)])
        sheet.tint(sheet.strokes([rim], 0.045), who.cloth2 if who.hair_volume > 0.5 else dark, 0.85)
