"""The parts of a portrait that do not change in a clip, each on a sheet of its own with its depth.

Depth says how far a part follows when the head turns or nods: 0 the axis of the head, 1 the face, negative behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from liveavatar.training.toon.canvas import Sheet, ellipse, mirrored, smooth
from liveavatar.training.toon.hair import draw_hair
from liveavatar.training.toon.identity import Identity, mix, scaled

EYE_Y, BROW_Y, NOSE_Y, MOUTH_Y = 0.04, -0.27, 0.32, 0.58
"""Heights of the parts of the face, in face units below its middle."""

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
    _draw_torso(who, torso)
    hair_back, hair_front, head, face, glasses = (Sheet(_HEAD_BOX, fine) for _ in range(5))
    draw_hair(who, hair_back, hair_front)
    _draw_head(who, head, hair_front.alpha)
    _draw_face(who, face)
    _draw_glasses(who, glasses)
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


def _draw_torso(who: Identity, sheet: Sheet) -> None:
    neck, floor = 0.30 + 0.06 * who.grown, sheet.top + sheet.height / sheet.scale + 0.2
    wide = 1.12 + 0.2 * who.grown
    shadow = _shade(who)
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
            sheet.darken(sheet.shape(flap + (0, 0.035), blur=0.02) * cloth, (0.6, 0.6, 0.65), 0.8)
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


def _shade(who: Identity) -> tuple[float, float, float]:
    """What the skin is multiplied by in shadow: warm, deeper in blue than in red."""
    return (0.80, 0.66, 0.60) if sum(who.skin) > 1.5 else (0.72, 0.62, 0.60)


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


def _draw_head(who: Identity, sheet: Sheet, hair: np.ndarray) -> None:
    shade, w, bright = _shade(who), who.face_width, mix(who.skin, (1, 0.95, 0.85), 0.4)
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
        sheet.over(ear, mix(who.skin, scaled(who.skin, *shade), 0.25))
        sheet.darken(sheet.soft(side * (w + 0.02), 0.03, 0.05, 0.12) * ear, shade, 0.8)
        if who.earrings:
            sheet.over(sheet.shape(ellipse(side * (w + 0.06), 0.33, 0.045, 0.055)), (0.93, 0.77, 0.32))
            sheet.over(sheet.shape(ellipse(side * (w + 0.05), 0.315, 0.016, 0.018)), (1, 0.97, 0.85))
    mask = sheet.shape(outline(who))
    sheet.over(mask, who.skin)
    inner = sheet.blurred(mask, 0.16)
    sheet.darken((1 - inner) * mask * 1.5, shade, 0.75)
    away = np.clip(-who.light_side * sheet.x / w * 0.75 - 0.08, 0, 1) * mask
    sheet.darken(away, shade, 0.75)
    sheet.tint(sheet.soft(who.light_side * 0.25, -0.45, 0.5, 0.3), bright, 0.5)
    sheet.tint(sheet.soft(who.light_side * 0.1, 0.86, 0.2, 0.1), bright, 0.3)
    if who.hair_style == "bald":
        sheet.tint(sheet.soft(who.light_side * 0.3, -0.72, 0.2, 0.12), (1, 0.98, 0.94), 0.4)
    else:
        drop = round(0.07 * sheet.scale)
        cast = np.zeros_like(hair)
        cast[drop:] = hair[:-drop] if drop else hair
        sheet.darken(sheet.blurred(cast, 0.045) * mask, shade, 0.7)


def _draw_face(who: Identity, sheet: Sheet) -> None:
    """Nose, cheeks, freckles, beard: what lies on the face and moves with it."""
    shade, away = _shade(who), -who.light_side
    rosy = mix(scaled(who.skin, 1.02, 0.66, 0.58), (0.95, 0.45, 0.36), 0.25)
    for side in (-1, 1):
        sheet.over(sheet.soft(side * 0.47, 0.35, 0.2, 0.13), rosy, who.blush)
        sheet.over(sheet.soft(side * who.eye_gap, EYE_Y - 0.13, 0.24, 0.1), scaled(who.skin, *shade), 0.28)
    _draw_beard(who, sheet)
    n = who.nose
    sheet.over(sheet.soft(away * 0.07, 0.12, 0.06, 0.24), scaled(who.skin, *shade), 0.3)
    sheet.over(sheet.soft(0, NOSE_Y + 0.05, n * 1.25, 0.065), scaled(who.skin, *shade), 0.55)
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
    sheet.over(sheet.strokes([curve], 0.02, 0.006), scaled(who.skin, *(g * 0.72 for g in shade)), 0.7)
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


def _draw_glasses(who: Identity, sheet: Sheet) -> None:
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
        sheet.strokes([rim[24:36] + (0, -0.006) for rim in rims], 0.012, 0.005), mix(who.frame, (1, 1, 1), 0.6), 0.6
    )
