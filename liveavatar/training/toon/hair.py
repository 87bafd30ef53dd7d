"""Hair: a part behind the head and one before it, with strands that follow its flow."""

from __future__ import annotations

import numpy as np

from liveavatar.training.toon.canvas import Sheet, ellipse, mirrored, smooth
from liveavatar.training.toon.identity import Identity, mix, scaled

_LENGTHS = {"bob": 0.72, "fringe": 0.62, "long": 1.75, "wavy": 1.6}
_CLOSE = ("bun", "ponytail", "buzz")


def draw_hair(who: Identity, back: Sheet, front: Sheet) -> None:
    """Paint both parts; either may stay empty."""
    rng = np.random.default_rng([abs(who.seed), 7002])
    if who.hair_style == "bald":
        return
    _draw_back(who, back, rng)
    _draw_front(who, front, rng)


def _top(who: Identity) -> float:
    return {"buzz": 0.06, "bun": 0.08, "ponytail": 0.09, "crop": 0.11, "quiff": 0.17}.get(who.hair_style, 0.15) + (
        0.07 * who.hair_volume if who.hair_style not in _CLOSE else 0
    )


def _draw_back(who: Identity, sheet: Sheet, rng: np.random.Generator) -> None:
    style, wide, rise = who.hair_style, who.face_width, _top(who)
    if style in _LENGTHS:
        end, out = _LENGTHS[style], 0.15 + 0.12 * who.hair_volume
        right = [(0, -1.0 - rise), (0.55, -0.93 - rise * 0.8), (wide + out * 0.9, -0.4), (wide + out, 0.2)]
        right += [(wide + out + 0.03, end * 0.65), (wide + out * (0.6 if end < 1 else 1.1), end), (0, end + 0.02)]
        if style == "wavy":
            right = _wavy(right, rng)
        mask = sheet.shape(smooth(mirrored(right)))
    elif style == "afro":
        size = 1.16 + 0.12 * who.hair_volume
        mask = sheet.shape(*_bumps(ellipse(0, -0.34, size * 0.98, size), 0.13, rng), ellipse(0, -0.34, size, size))
    elif style == "curly":
        size = 1.0 + 0.1 * who.hair_volume
        mask = sheet.shape(
            *_bumps(ellipse(0, -0.28, size * 0.97, size * 0.92), 0.14, rng), ellipse(0, -0.3, size, size * 0.9)
        )
    elif style == "bun":
        mask = sheet.shape(ellipse(0, -1.16, 0.32, 0.27))
    elif style == "ponytail":
        side = who.part_side
        tail = [
            (0.1, -0.95),
            (0.75, -0.85),
            (1.12, -0.3),
            (1.13, 0.35),
            (0.93, 0.85),
            (0.9, 0.3),
            (0.8, -0.2),
            (0.4, -0.6),
        ]
        mask = sheet.shape(smooth(np.array(tail) * (side, 1)))
    else:
        return
    dark = scaled(who.hair, 0.72)
    sheet.over(mask, dark)
    light, deep = _falling(who, rng)
    if style in ("afro", "curly"):
        curls = [ellipse(*rng.uniform((-1.1, -1.4), (1.1, 0.4)), 0.09, 0.08) for _ in range(90)]
        sheet.tint(sheet.strokes(curls[:45], 0.03, 0.012), mix(who.hair, (1, 1, 1), 0.08), 0.5)
        sheet.darken(sheet.strokes(curls[45:], 0.03, 0.012), (0.8, 0.8, 0.8), 0.6)
    else:
        sheet.tint(sheet.strokes(light, 0.03, 0.012), mix(who.hair, (1, 1, 1), 0.06), 0.45)
        sheet.darken(sheet.strokes(deep, 0.03, 0.012), (0.78, 0.78, 0.8), 0.6)
    sheet.darken(1 - sheet.blurred(mask, 0.1), (0.75, 0.75, 0.8), 0.5)
    sheet.darken(sheet.soft(0, 0.75, 0.75, 0.5), (0.6, 0.6, 0.65), 0.8)  # the head's own shadow


def _wavy(points: list[tuple[float, float]], rng: np.random.Generator) -> list[tuple[float, float]]:
    bent = smooth(points, closed=False, steps=4)
    wave = 0.055 * np.sin(bent[:, 1] * 9 + rng.uniform(0, 6))
    return [(max(0.0, x + w * (x > 0.5)), y) for (x, y), w in zip(bent.tolist(), wave, strict=True)]


def _bumps(outline: np.ndarray, size: float, rng: np.random.Generator) -> list[np.ndarray]:
    return [ellipse(x, y, *(size * rng.uniform(0.75, 1.2, 2))) for x, y in outline[::2] if y < 0.45]


def _falling(who: Identity, rng: np.random.Generator) -> tuple[list, list]:
    lines = []
    for x in rng.uniform(-1.15, 1.15, 34):
        y = np.linspace(-0.9, 1.8, 24)
        bend = 0.05 * np.sin(y * (9 if who.hair_style == "wavy" else 3) + x * 5)
        lines.append(np.stack([x * (0.8 + 0.2 * y.clip(-1, 1)) + bend, y], axis=1))
    return lines[::2], lines[1::2]


def _hairline(who: Identity) -> list[tuple[float, float]]:
    """From the left temple over the forehead to the right one; the part, if any, on the right."""
    style, w = who.hair_style, who.face_width
    if style == "fringe":
        return [
            (-w + 0.03, 0.12),
            (-w + 0.1, -0.3),
            (-0.4, -0.42),
            (0, -0.45),
            (0.4, -0.42),
            (w - 0.1, -0.3),
            (w - 0.03, 0.12),
        ]
    if style in ("bob", "long", "wavy"):
        low = 0.62 if style == "bob" else 0.95
        return [
            (-w - 0.02, low), (-w + 0.07, 0.2), (-w + 0.16, -0.22), (-0.36, -0.5), (0.08, -0.7), (0.27, -0.82),
            (0.4, -0.7), (w - 0.2, -0.32), (w - 0.08, 0.15), (w + 0.02, low),
        ]  # fmt: skip
    if style == "part":
        return [
            (-w + 0.02, 0.02),
            (-w + 0.09, -0.3),
            (-0.45, -0.43),
            (0.1, -0.55),
            (0.42, -0.74),
            (w - 0.17, -0.5),
            (w - 0.09, -0.25),
            (w - 0.02, 0.02),
        ]
    if style == "quiff":
        return [
            (-w + 0.02, 0.0),
            (-w + 0.09, -0.4),
            (-0.45, -0.63),
            (0, -0.66),
            (0.45, -0.63),
            (w - 0.09, -0.4),
            (w - 0.02, 0.0),
        ]
    if style in ("bun", "ponytail"):
        return [
            (-w + 0.02, -0.05),
            (-w + 0.1, -0.38),
            (-0.4, -0.66),
            (0, -0.72),
            (0.4, -0.66),
            (w - 0.1, -0.38),
            (w - 0.02, -0.05),
        ]
    if style in ("afro", "curly"):
        return [
            (-w - 0.02, 0.1),
            (-w + 0.1, -0.32),
            (-0.45, -0.52),
            (0, -0.57),
            (0.45, -0.52),
            (w - 0.1, -0.32),
            (w + 0.02, 0.1),
        ]
    peak = -0.6 if style == "crop" else -0.64
    return [
        (-w + 0.02, 0.02),
        (-w + 0.1, -0.42),
        (-0.42, peak),
        (0, peak + 0.03),
        (0.42, peak),
        (w - 0.1, -0.42),
        (w - 0.02, 0.02),
    ]


def _crown(who: Identity) -> list[tuple[float, float]]:
    """From the right temple over the skull to the left one."""
    style, w, rise = who.hair_style, who.face_width, _top(who)
    out = 0.03 if style in _CLOSE else 0.07 + 0.05 * who.hair_volume
    if style == "quiff":
        return [
            (w + 0.02, -0.02), (w + 0.07, -0.45), (0.82, -0.9), (0.55, -1.12 - rise * 0.8), (0.1, -1.16 - rise * 0.7),
            (-0.4, -1.05 - rise * 0.5), (-0.74, -0.82), (-w - 0.06, -0.45), (-w - 0.02, -0.02),
        ]  # fmt: skip
    low = {"bob": 0.7, "long": 1.15, "wavy": 1.1, "fringe": 0.2}.get(style, 0.02)
    wide = [(w + 0.1, low * 0.98), (w + out + 0.03, low * 0.4)] if low > 0.1 else [(w + 0.02, low)]
    right = [*wide, (w + out, -0.42), (0.6, -0.88 - rise * 0.75)]
    return [*right, (0.05, -1.0 - rise), *[(-x, y) for x, y in reversed(right)]]


def _draw_front(who: Identity, sheet: Sheet, rng: np.random.Generator) -> None:
    style, flip = who.hair_style, np.array([who.part_side, 1.0])
    line = smooth(_hairline(who), closed=False)
    crown = smooth(_crown(who), closed=False)
    outlines = [np.concatenate([crown, line]) * flip]
    if style in ("afro", "curly"):
        size = 0.1 if style == "afro" else 0.125
        outlines += [ellipse(x, y, *(size * rng.uniform(0.8, 1.2, 2))) for x, y in line[6:-6:5]]
        outlines += [ellipse(x, y, *(size * rng.uniform(0.8, 1.3, 2))) for x, y in crown[::6]]
    mask = sheet.shape(*outlines)
    base = who.hair if style != "buzz" else mix(who.hair, who.skin, 0.35)
    if style == "buzz":
        mask = sheet.blurred(mask, 0.02)
    sheet.over(mask, base, 0.8 if style == "buzz" else 1.0)
    if style in ("afro", "curly"):
        curls = [ellipse(*rng.uniform((-1.1, -1.4), (1.1, 0.2)), 0.085, 0.075) for _ in range(90)]
        light, deep, strength = curls[:45], curls[45:], 0.5
    else:
        light, deep = _flow(
            line * flip,
            crown[::-1] * flip,
            who.part_side * (0.27 if style in ("bob", "long", "wavy", "part") else 0.0),
            rng,
        )
        strength = 0.25 if style == "buzz" else 0.55
    sheet.tint(sheet.strokes(light, 0.022, 0.01), mix(who.hair, (1, 0.97, 0.9), 0.22), strength)
    sheet.darken(sheet.strokes(deep, 0.024, 0.01), (0.72, 0.72, 0.75), strength)
    edge = sheet.blurred(mask, 0.09)
    sheet.darken((1 - edge) * mask, (0.6, 0.6, 0.66), 0.75)
    shine = sheet.soft(who.light_side * 0.34, -0.93, 0.42, 0.13) + 0.5 * sheet.soft(
        who.light_side * 0.62, -0.6, 0.16, 0.25
    )
    sheet.tint(shine.clip(0, 1), mix(who.hair, (1, 0.98, 0.93), 0.5), 0.45 if style != "buzz" else 0.2)


def _flow(line: np.ndarray, crown: np.ndarray, part: float, rng: np.random.Generator) -> tuple[list, list]:
    """Strands from the part over the crown down to the hairline."""
    strands = []
    order = line if line[0, 0] < line[-1, 0] else line[::-1]
    hull = crown if crown[0, 0] < crown[-1, 0] else crown[::-1]
    for _ in range(44):
        a = rng.random()
        root = np.array([part + rng.normal(0, 0.05), -1.0 + rng.normal(0, 0.05)])
        inner = order[int(a * (len(order) - 1))]
        outer = hull[int(a * (len(hull) - 1))]
        end = inner + (outer - inner) * rng.uniform(0.0, 0.9)
        top = np.array([end[0] * 0.8 + root[0] * 0.2, min(-0.78, end[1] - 0.1)])
        t = np.linspace(0, 1, 14)[:, None]
        strands.append((1 - t) ** 2 * root + 2 * t * (1 - t) * top + t**2 * end)
    return strands[::2], strands[1::2]
