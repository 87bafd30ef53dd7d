"""What a head and its lids do with a voice: they move with its stress and its brightness, and shut when it pauses.

People who speak move so: the head's motion follows loudness and pitch (Munhall et al. 2004, Yehia et al. 2002), and
blinks fall into the pauses of what is said (Nakano and Kitazawa 2010). A model that hears the voice can learn it.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from liveavatar.training.toon.motion import Motion, shut_at
from liveavatar.training.toon.speech import at_frames, heard, smoothed
from liveavatar.types import FPS

SHARE = 0.4
"""How much of the noise of a head at rest is left in one that speaks."""

NOD = {"y": 0.08, "nod": 0.6}
"""By how much the head goes down from quiet to loud: in face units, and as a turn."""

LEAN = {"x": 0.09, "roll": 0.06, "turn": 0.6}
"""By how much it leans from dark vowels to bright ones."""

_SMOOTH_S, _SPEAKS = 0.44, 0.12
_PAUSE_S, _SPOKEN_S, _BLINK_GAP_S = 0.08, 0.24, 1.4


def follow(motion: Motion, pcm: Float[np.ndarray, " samples"], sway: float = 1.0) -> Motion:
    """The same head and lids as a voice at 16 kHz moves them; `sway` scales the head's part."""
    frames = len(motion)
    bands, loud = heard(pcm, frames)
    tilt = np.log10((bands[3] + bands[4] + 1e-9) / (bands[1] + bands[2] + 1e-9))
    bright = np.where(loud > 0.2, (tilt + 0.4).clip(-1, 1), 0.0)
    stress, lean = (at_frames(row, frames) for row in smoothed(np.stack([loud, bright]), _SMOOTH_S))
    stress = stress - 0.45
    told = {name: gain * stress for name, gain in NOD.items()} | {name: gain * lean for name, gain in LEAN.items()}
    curves = {name: SHARE * getattr(motion, name) + sway * curve for name, curve in told.items()}
    return motion.with_(blink=_blinks(loud, frames), **curves)


def _blinks(loud: np.ndarray, frames: int) -> np.ndarray:
    """Lids that shut once a pause can be heard, not twice within 1.4 s: nothing but the voice so far decides."""
    speaks = at_frames(loud, frames) > _SPEAKS
    shut = np.zeros(frames, np.float32)
    pause, spoken, gap = (round(seconds * FPS) for seconds in (_PAUSE_S, _SPOKEN_S, _BLINK_GAP_S))
    last = -gap
    for frame in range(pause + spoken, frames):
        begun = frame - pause
        pauses = speaks[begun - spoken : begun].all() and not speaks[begun:frame].any()
        if pauses and frame - last > gap:
            shut_at(shut, frame)
            last = frame
    return shut
