"""A meter for drawn faces (see `metrics.toon`): lips against the voice, and whether it is still the same face."""

from __future__ import annotations

import numpy as np

from liveavatar.metrics import toon
from liveavatar.metrics.about import records
from liveavatar.metrics.picture import delta_e, lab
from liveavatar.metrics.series import LaggedCorrelation, Mean
from liveavatar.metrics.suite import Piece

REACH = 10
"""Frames by which lips may lead or follow."""


def lips_against_voice(found: LaggedCorrelation, fps: float, heard: bool) -> dict[str, float | str]:
    """The two values of the lip-sync proxy, or why there are none."""
    if not heard:
        return dict.fromkeys(("sync/lip_energy_r", "sync/lip_lag_ms"), "skipped: the video has no sound")
    r, lag = found.best()
    if np.isnan(r):
        return dict.fromkeys(("sync/lip_energy_r", "sync/lip_lag_ms"), "skipped: the mouth or the voice never changes")
    return {"sync/lip_energy_r": r, "sync/lip_lag_ms": 1000 * lag / fps}


SYNC = (
    ("sync/lip_energy_r", "highest Pearson r, over lags of at most 10 frames, between the opening of the mouth and the log energy of the voice from 300 to 3400 Hz; a proxy, not Sync-C", "-1 to 1", "higher"),
    ("sync/lip_lag_ms", "the lag at which it is highest: above 0 the lips come after the sound", "milliseconds", "none"),
)  # fmt: skip

COLOURED = {"hair": (-0.3, -1.0, 0.3, -0.75), "brow": (-0.3, -0.55, 0.3, -0.3), "cheeks": (-0.5, 0.2, 0.5, 0.4)}
"""Where the colours of a face are read: left, top, right, bottom in face units from its middle."""


class ToonMeter:
    """Mouth and colours of a drawn face in its usual framing."""

    abouts = records(
        *SYNC,
        ("sync/mouth_range", "standard deviation of the mouth's opening", "share of a mouth open all the way", "none"),
        ("identity/toon_colours", "distance in CIELAB of the median colours of hair, brow and cheeks from those of the first frame, mean over them and over frames", "ΔE, from 0", "lower"),
        ("identity/toon_no_mouth_share", "frames in which no drawn mouth was found", "0 to 1", "lower"),
        requires="a drawn face (training.toon) in its usual framing",
    )  # fmt: skip

    def __init__(self) -> None:
        self._sync, self._missing, self._colour = LaggedCorrelation(REACH), Mean(), Mean()
        self._opening, self._square = Mean(), Mean()
        self._first: np.ndarray | None = None
        self._fps, self._heard = 25.0, False

    def see(self, piece: Piece) -> None:
        self._fps = piece.fps
        self._heard |= len(piece.audio) > 0
        lips = toon.mouth(piece.frames)
        opening = np.where(lips.found, lips.opening, np.nan)
        self._sync.add(opening, piece.energy)
        self._missing.add((~lips.found).astype(float))
        self._opening.add(opening[lips.found])
        self._square.add(opening[lips.found] ** 2)
        colours = _colours(piece.frames)
        first = colours[0] if self._first is None else self._first
        self._first = first
        self._colour.add(delta_e(colours, first).mean(1))

    def values(self) -> dict[str, float | str]:
        found: dict[str, float | str] = {"identity/toon_no_mouth_share": self._missing.value}
        if self._missing.value > 0.5:
            reason = f"skipped: no drawn mouth in {100 * self._missing.value:.0f} % of the frames"
            return {about.name: reason for about in self.abouts} | found
        found |= lips_against_voice(self._sync, self._fps, self._heard)
        spread = max(0.0, self._square.value - self._opening.value**2)
        return found | {"sync/mouth_range": spread**0.5, "identity/toon_colours": self._colour.value}


def _colours(frames: np.ndarray) -> np.ndarray:
    """Median colours in CIELAB, [t, places, 3]."""
    height, width = frames.shape[1:3]
    unit, found = toon.face_unit(height, width), []
    for left, top, right, bottom in COLOURED.values():
        rows = slice(max(0, round(height / 2 + top * unit)), max(1, round(height / 2 + bottom * unit)))
        columns = slice(max(0, round(width / 2 + left * unit)), max(1, round(width / 2 + right * unit)))
        part = frames[:, rows, columns].reshape(len(frames), -1, 3)
        found.append(lab(np.median(part, axis=1).astype(np.uint8)))
    return np.stack(found, axis=1)
