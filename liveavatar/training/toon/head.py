"""The head: skin and ears, nose and cheeks, beard, glasses."""

from __future__ import annotations

import numpy as np

from liveavatar.training.toon.canvas import Sheet, ellipse, mirrored, smooth
from liveavatar.training.toon.identity import Identity, mix, scaled, shade

EYE_Y, BROW_Y, NOSE_Y, MOUTH_Y = 0.04, -0.27, 0.32, 0.58
"""Heights of the parts of the face, in face units below its middle."""


def outline(who: Identity) -> np.ndarray:
    """The head without hair and ears."""
    w = who.face_width
    jaw, chin = 0.50 + 0.15 * who.jaw, 0.22 + 0.13 * who.jaw
    return smooth(
        mirrored(
            [
                (0, -1.0),
                (0.46, -0.9),
                (w * 0.93, -0.48),
                (w, 0.0),
                (w * 0.95, 0.36),
                (jaw, 0.74),
                (chin, 0.95),
                (0, 1.0),
            ]
        )
    )


def draw_head(who: Identity, sheet: Sheet, hair: np.ndarray) -> None:
    """Skin and ears, under the shadow of the `hair` (its coverage [h, w])."""
    dim, w, bright = shade(who.skin), who.face_width, mix(who.skin, (1, 0.95, 0.85), 0.4)
    for side in (-1, 1):
        ear = sheet.shape(
            smooth(
                [
                    (side * (w - 0.06), -0.16),
                    (side * (w + 0.1), -0.14),
                    (side * (w + 0.12), 0.04),
                    (side * (w + 0.05), 0.24),
                    (side * (w - 0.06), 0.26),
                ]
            )
        )
        sheet.over(ear, mix(who.skin, scaled(who.skin, *dim), 0.25))
        sheet.darken(sheet.soft(side * (w + 0.02), 0.03, 0.05, 0.12) * ear, dim, 0.8)
        if who.earrings:
            sheet.over(sheet.shape(ellipse(side * (w + 0.06), 0.33, 0.045, 0.055)), (0.93, 0.77, 0.32))
            sheet.over(sheet.shape(ellipse(side * (w + 0.05), 0.315, 0.016, 0.018)), (1, 0.97, 0.85))
    mask = sheet.shape(outline(who))
    sheet.over(mask, who.skin)
    inner = sheet.blurred(mask, 0.16)
    sheet.darken((1 - inner) * mask * 1.5, dim, 0.75)
    away = np.clip(-who.light_side * sheet.x / w * 0.75 - 0.08, 0, 1) * mask
    sheet.darken(away, dim, 0.75)
    sheet.tint(sheet.soft(who.light_side * 0.25, -0.45, 0.5, 0.3), bright, 0.5)
    sheet.tint(sheet.soft(who.light_side * 0.1, 0.86, 0.2, 0.1), bright, 0.3)
    if who.hair_style == "bald":
        sheet.tint(sheet.soft(who.light_side * 0.3, -0.72, 0.2, 0.12), (1, 0.98, 0.94), 0.4)
    else:
        drop = round(0.07 * sheet.scale)
        cast = np.zeros_like(hair)
        cast[drop:] = hair[:-drop] if drop else hair
        sheet.darken(sheet.blurred(cast, 0.045) * mask, dim, 0.7)


def draw_face(who: Identity, sheet: Sheet) -> None:
    """Nose, cheeks, freckles, beard: what lies on the face and moves with it."""
    dim, away = shade(who.skin), -who.light_side
    rosy = mix(scaled(who.skin, 1.02, 0.66, 0.58), (0.95, 0.45, 0.36), 0.25)
    for side in (-1, 1):
        sheet.over(sheet.soft(side * 0.47, 0.35, 0.2, 0.13), rosy, who.blush)
        sheet.over(sheet.soft(side * who.eye_gap, EYE_Y - 0.13, 0.24, 0.1), scaled(who.skin, *dim), 0.28)
    _draw_beard(who, sheet)
    n = who.nose
    sheet.over(sheet.soft(away * 0.07, 0.12, 0.06, 0.24), scaled(who.skin, *dim), 0.3)
    sheet.over(sheet.soft(0, NOSE_Y + 0.05, n * 1.25, 0.065), scaled(who.skin, *dim), 0.55)
    sheet.over(sheet.shape(ellipse(0, NOSE_Y - 0.005, n, 0.07), blur=0.025), mix(who.skin, rosy, 0.4), 0.9)
    sheet.over(
        sheet.soft(who.light_side * 0.025, NOSE_Y - 0.03, 0.045, 0.035), mix(who.skin, (1, 0.97, 0.9), 0.65), 0.8
    )
    sheet.over(sheet.soft(who.light_side * 0.02, 0.1, 0.03, 0.17), mix(who.skin, (1, 0.95, 0.85), 0.5), 0.35)
    curve = smooth(
        [
            (-n, NOSE_Y + 0.005),
            (-n * 0.72, NOSE_Y + 0.055),
            (0, NOSE_Y + 0.072),
            (n * 0.72, NOSE_Y + 0.055),
            (n, NOSE_Y + 0.005),
        ],
        False,
    )
    sheet.over(sheet.strokes([curve], 0.02, 0.006), scaled(who.skin, *(g * 0.72 for g in dim)), 0.7)
    if who.freckles:
        rng = np.random.default_rng([abs(who.seed), 7003])
        dots = [ellipse(x, y, 0.013, 0.013) for x, y in rng.normal((0, 0.25), (0.3, 0.06), (26, 2)) if abs(x) > 0.1]
        sheet.over(sheet.shape(*dots), scaled(who.skin, 0.74, 0.58, 0.48), 0.65)


def _draw_beard(who: Identity, sheet: Sheet) -> None:
    if who.beard == "none":
        return
    colour, w = scaled(who.hair, 0.9), who.face_width
    whiskers = smooth(
        [
            (-0.30, MOUTH_Y - 0.07),
            (-0.2, MOUTH_Y - 0.15),
            (0, MOUTH_Y - 0.165),
            (0.2, MOUTH_Y - 0.15),
            (0.30, MOUTH_Y - 0.07),
            (0.18, MOUTH_Y - 0.095),
            (0, MOUTH_Y - 0.105),
            (-0.18, MOUTH_Y - 0.095),
        ]
    )
    jaw, chin = 0.50 + 0.15 * who.jaw, 0.22 + 0.13 * who.jaw
    full = [
        (0, MOUTH_Y + 0.17),
        (0.26, MOUTH_Y + 0.13),
        (0.42, MOUTH_Y - 0.02),
        (0.6, 0.36),
        (w * 0.9, 0.0),
        (w + 0.01, -0.02),
        (w * 0.97, 0.36),
        (jaw + 0.015, 0.74),
        (chin + 0.02, 0.97),
        (0, 1.03),
    ]
    if who.beard == "moustache":
        mask = sheet.shape(whiskers)
    elif who.beard == "goatee":
        mask = sheet.shape(
            whiskers, smooth(mirrored([(0, MOUTH_Y + 0.2), (0.17, MOUTH_Y + 0.22), (0.2, 0.9), (0.1, 1.02), (0, 1.03)]))
        )
    else:
        mask = sheet.shape(smooth(mirrored(full)), whiskers)
    if who.beard == "stubble":
        sheet.over(sheet.blurred(mask, 0.05), mix(colour, scaled(who.skin, 0.6), 0.4), 0.32)
        return
    mask = sheet.blurred(mask, 0.012)
    sheet.over(mask, colour, 0.96)
    rng = np.random.default_rng([abs(who.seed), 7004])
    hairs = []
    for x, y in rng.uniform((-0.85, 0.1), (0.85, 1.0), (120, 2)):
        hairs.append([(x, y), (x * 0.96, y + 0.08)])
    sheet.tint(sheet.strokes(hairs[:60], 0.016, 0.006), mix(who.hair, (1, 0.97, 0.9), 0.22), 0.6)
    sheet.darken(sheet.strokes(hairs[60:], 0.018, 0.006), (0.72, 0.72, 0.75), 0.6)
    sheet.darken((1 - sheet.blurred(mask, 0.06)) * mask, (0.75, 0.75, 0.78), 0.5)


def draw_glasses(who: Identity, sheet: Sheet) -> None:
    """The glasses, if there are any."""
    if who.glasses == "none":
        return
    rx, ry, gap = who.eye_width + 0.085, who.eye_height + 0.115, who.eye_gap
    lenses = []
    for side in (-1, 1):
        if who.glasses == "round":
            lenses.append(ellipse(side * gap, EYE_Y + 0.02, rx + 0.005, rx + 0.005))
        else:
            x, y = side * gap, EYE_Y + 0.02
            lenses.append(
                smooth(
                    [
                        (x - rx, y - ry * 0.6),
                        (x - rx * 0.6, y - ry),
                        (x + rx * 0.6, y - ry),
                        (x + rx, y - ry * 0.6),
                        (x + rx * 0.94, y + ry * 0.6),
                        (x + rx * 0.55, y + ry),
                        (x - rx * 0.55, y + ry),
                        (x - rx * 0.94, y + ry * 0.6),
                    ]
                )
            )
    rims = [np.concatenate([lens, lens[:2]]) for lens in lenses]
    sheet.over(sheet.shape(*lenses), (1, 1, 1), 0.07)
    for side in (-1, 1):
        glint = np.array([(-0.16, 0.13), (-0.07, 0.13), (0.06, -0.2), (-0.03, -0.2)]) * 0.75 + (
            side * gap - 0.07,
            EYE_Y,
        )
        sheet.over(sheet.shape(glint, blur=0.01) * sheet.shape(*lenses), (1, 1, 1), 0.14)
    bridge = smooth([(-gap + rx - 0.01, EYE_Y - 0.02), (0, EYE_Y - 0.07), (gap - rx + 0.01, EYE_Y - 0.02)], False)
    arms = [
        [(side * (gap + rx - 0.01), EYE_Y - 0.06), (side * (who.face_width + 0.01), EYE_Y - 0.05)] for side in (-1, 1)
    ]
    sheet.over(sheet.strokes([*rims, bridge, *arms], 0.042), who.frame)
    sheet.tint(
        sheet.strokes([rim[24:36] - np.array([0, 0.006]) for rim in rims], 0.012, 0.005),
        mix(who.frame, (1, 1, 1), 0.6),
        0.6,
    )
