"""Who is drawn: every trait of a face, a pure function of an integer seed.

No colour outside the mouth has more blue than green together with much more red than green (crimson, pink, purple):
`metrics.toon` finds the mouth by just that.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, fields, replace

import numpy as np

Colour = tuple[float, float, float]
"""Red, green and blue, 0 to 1."""

HAIR_STYLES = (
    "crop", "part", "quiff", "curly", "afro", "bob", "long", "wavy", "bun", "ponytail", "fringe", "buzz", "bald",
)  # fmt: skip
CLOTHES = ("tee", "vneck", "shirt", "hoodie", "turtleneck", "blazer")
GLASSES = ("none", "round", "square")
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
BACKDROPS = ("glow", "dusk", "circle", "window", "wall")

_SKINS = (
    "#f9d9bf", "#f5cba7", "#efbe94", "#e6ad7e", "#d99c6a", "#c68752", "#ad7043", "#935a35", "#78472b", "#5f3822",
)  # fmt: skip
_HAIRS = (
    "#2a211d", "#3a2a20", "#54382a", "#6f4a2f", "#8f6237", "#b5833f", "#d9b05f", "#ecd48f", "#a4512a", "#c2682f",
    "#8d8a86", "#c9c5bd",
)  # fmt: skip
_DYED = ("#3b6f86", "#3f8276", "#4a6396")
_EYES = ("#5b3a1e", "#7a4f25", "#8a6a2c", "#4f7a3a", "#3d8a6a", "#3b7fb5", "#5a93c8", "#6d8494", "#3a2a20")
_LIPS = ((0.82, 0.36, 0.49), (0.78, 0.31, 0.44), (0.75, 0.29, 0.43), (0.84, 0.40, 0.53))
_LIPS_DEEP = ((0.70, 0.28, 0.40), (0.66, 0.25, 0.37), (0.73, 0.31, 0.43))
INNER_MOUTH: Colour = (0.34, 0.02, 0.15)
TONGUE: Colour = (0.62, 0.13, 0.29)
TEETH: Colour = (1.0, 0.985, 0.96)


def rgb(code: str) -> Colour:
    return tuple(int(code[i : i + 2], 16) / 255 for i in (1, 3, 5))  # type: ignore[return-value]


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Hue in degrees."""
    return colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b, the rest a."""
    return tuple(x + (y - x) * share for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def scaled(colour: Colour, *gains: float) -> Colour:
    gains = gains if len(gains) == 3 else gains * 3
    return tuple(min(1.0, c * g) for c, g in zip(colour, gains, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True)
class Identity:
    """A face. Lengths are in face units: 1 from the middle of the face to the tip of the chin."""

    seed: int
    skin: Colour
    hair: Colour
    hair_style: str
    hair_volume: float  # 0 to 1
    part_side: float  # -1 or 1
    grown: float  # 0 feminine to 1 masculine drawing: lashes, brows, jaw
    iris: Colour
    eye_gap: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    brow_weight: float
    brow_arch: float
    face_width: float
    jaw: float  # 0 narrow to 1 square
    nose: float  # width
    mouth_width: float
    lip: Colour
    lip_weight: float
    blush: float
    freckles: bool
    glasses: str
    frame: Colour  # of the glasses
    beard: str
    clothes: str
    cloth: Colour
    cloth2: Colour
    backdrop: str
    back: Colour
    back2: Colour
    light_side: float  # -1: from the left
    earrings: bool

    @classmethod
    def sample(cls, seed: int, **attributes: object) -> Identity:
        """The face of a seed; `attributes` replace single traits by name.

        Raises:
            ValueError: for a trait that does not exist, or a style that is not in its list.
        """
        rng = np.random.default_rng([abs(int(seed)), 7001, int(seed < 0)])
        grown = float(rng.beta(0.45, 0.45))
        who = cls(seed=int(seed), grown=grown, **_head(rng, grown), **_outfit(rng, grown))
        _check(attributes)
        return replace(who, **attributes) if attributes else who  # type: ignore[arg-type]


_CHOICES = {"hair_style": HAIR_STYLES, "clothes": CLOTHES, "glasses": GLASSES, "beard": BEARDS, "backdrop": BACKDROPS}


def _check(attributes: dict[str, object]) -> None:
    known = [field.name for field in fields(Identity) if field.name != "seed"]
    for name, value in attributes.items():
        if name not in known:
            raise ValueError(f"A toon has no trait {name!r}. Choose among: {', '.join(known)}.")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ValueError(f"{name}={value!r} is not drawn. Choose among: {', '.join(_CHOICES[name])}.")


def _pick(rng: np.random.Generator, options: tuple, weights: tuple | None = None):
    shares = None if weights is None else np.asarray(weights, float) / sum(weights)
    return options[int(rng.choice(len(options), p=shares))]


def _head(rng: np.random.Generator, grown: float) -> dict:
    tone = int(rng.integers(len(_SKINS)))
    skin = scaled(rgb(_SKINS[tone]), *(1 + rng.uniform(-0.02, 0.02, 3)))
    dark = tone / (len(_SKINS) - 1)
    if rng.random() < 0.04:
        hair = rgb(_pick(rng, _DYED))
    else:  # the darker the skin, the likelier dark hair
        hair = rgb(_HAIRS[int(rng.integers(4))] if rng.random() < dark * 1.1 else _pick(rng, _HAIRS))
    man = grown > 0.5
    styles = (5, 4, 4, 3, 1.5, 0, 0.4, 0.4, 0.5, 0, 1, 2, 1.2) if man else (0.6, 1, 0, 3, 2, 4, 4, 4, 3, 3, 4, 0.2, 0)
    beards = (4, 1.5, 0.8, 0.8, 2.2) if man else (1, 0, 0, 0, 0)
    eye = float(rng.uniform(0.9, 1.08))
    return {
        "skin": skin,
        "hair": scaled(hair, float(rng.uniform(0.92, 1.08))),
        "hair_style": _pick(rng, HAIR_STYLES, styles),
        "hair_volume": float(rng.random()),
        "part_side": float(rng.choice([-1.0, 1.0])),
        "iris": rgb(_EYES[int(rng.integers(3))] if rng.random() < dark else _pick(rng, _EYES)),
        "eye_gap": float(rng.uniform(0.35, 0.39)),
        "eye_width": 0.205 * eye,
        "eye_height": float(rng.uniform(0.138, 0.162)) * eye - 0.008 * man,
        "eye_tilt": float(rng.uniform(-0.02, 0.035)),
        "brow_weight": float(rng.uniform(0.045, 0.06) + 0.022 * grown),
        "brow_arch": float(rng.uniform(0.04, 0.085) - 0.025 * grown),
        "face_width": float(rng.uniform(0.78, 0.86)),
        "jaw": float(np.clip(0.25 + 0.5 * grown + rng.uniform(-0.25, 0.25), 0, 1)),
        "nose": float(rng.uniform(0.075, 0.12)),
        "mouth_width": float(rng.uniform(0.30, 0.35)),
        "lip": _pick(rng, _LIPS_DEEP if dark > 0.6 else _LIPS),
        "lip_weight": float(rng.uniform(0.075, 0.095) - 0.018 * grown),
        "blush": float(rng.uniform(0.25, 0.6) * (1 - 0.5 * grown)),
        "freckles": bool(rng.random() < 0.14 and tone < 4),
        "beard": _pick(rng, BEARDS, beards),
        "earrings": bool(not man and rng.random() < 0.35),
    }


def _outfit(rng: np.random.Generator, grown: float) -> dict:
    # hues 25 to 255 degrees: from orange over green to blue; the mouth alone is crimson
    hue = float(rng.uniform(25, 235))
    cloth = _pick(
        rng,
        (
            hsv(rng.uniform(25, 235), rng.uniform(0.35, 0.6), rng.uniform(0.5, 0.85)),
            hsv(rng.uniform(200, 235), rng.uniform(0.4, 0.7), rng.uniform(0.28, 0.5)),
            hsv(rng.uniform(35, 55), rng.uniform(0.05, 0.15), rng.uniform(0.88, 0.97)),
            hsv(210, 0.1, rng.uniform(0.2, 0.4)),
        ),
        (5, 2, 2, 1.5),
    )
    second = hsv(hue + rng.choice([-35.0, 30.0]) * 0.6, rng.uniform(0.2, 0.5), rng.uniform(0.75, 0.98))
    back = hsv(hue, rng.uniform(0.12, 0.34), rng.uniform(0.78, 0.96))
    return {
        "glasses": _pick(rng, GLASSES, (3.2, 1, 1)),
        "frame": _pick(rng, (rgb("#2b2b30"), rgb("#5a3d22"), rgb("#b08a3c"), rgb("#2c4a6e"))),
        "clothes": _pick(rng, CLOTHES, (4, 2, 3, 3, 2, 2)),
        "cloth": cloth,
        "cloth2": second if min(second) < 0.9 else rgb("#f2efe6"),
        "backdrop": _pick(rng, BACKDROPS),
        "back": back,
        "back2": hsv(hue + rng.uniform(-25, 15), rng.uniform(0.2, 0.42), rng.uniform(0.5, 0.82)),
        "light_side": float(rng.choice([-1.0, 1.0])),
    }
