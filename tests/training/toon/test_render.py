"""Faces: the same from the same seed, any size, and the ground truth where it says."""

from __future__ import annotations

import numpy as np
import pytest

from liveavatar.metrics.toon import face_unit, mouth
from liveavatar.training.toon import Identity, Motion, landmarks, random_motion, render, render_still
from liveavatar.training.toon.identity import BEARDS, CLOTHES, GLASSES, HAIR_STYLES

SMALL = (64, 64)


def test_a_seed_is_a_face_and_a_motion() -> None:
    assert Identity.sample(7) == Identity.sample(7)
    assert Identity.sample(7) != Identity.sample(8)
    again = [render(Identity.sample(7), random_motion(3, 5), SMALL) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    assert not np.array_equal(again[0], render(Identity.sample(8), random_motion(3, 5), SMALL))


def test_a_part_is_the_same_as_the_whole() -> None:
    who, motion = Identity.sample(1), random_motion(1, 30)
    whole = render(who, motion, SMALL)
    np.testing.assert_array_equal(render(who, motion, SMALL, slice(11, 17)), whole[11:17])
    assert np.abs(np.diff(whole.astype(int), axis=0)).max() > 0


@pytest.mark.parametrize("size", [(32, 32), (64, 112), (112, 64), (48, 208)])
def test_any_size(size: tuple[int, int]) -> None:
    drawn = render_still(Identity.sample(2), size)
    assert drawn.shape == (*size, 3)
    assert drawn.dtype == np.uint8
    assert drawn.std() > 20


@pytest.mark.parametrize("size", [(100, 128), (16, 64), (128, 0)])
def test_other_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"multiples of 16.*size=\(128, 128\)"):
        render_still(Identity.sample(2), size)


def test_two_hundred_faces() -> None:
    seen = [Identity.sample(seed) for seed in range(200)]
    for seed, who in enumerate(seen):
        drawn = render(who, random_motion(seed, 1), (32, 32))
        assert drawn.std() > 10
    for name, styles in (("hair_style", HAIR_STYLES), ("clothes", CLOTHES), ("glasses", GLASSES), ("beard", BEARDS)):
        assert {getattr(who, name) for who in seen} == set(styles)


def test_traits_can_be_chosen() -> None:
    plain, bespectacled = (Identity.sample(4, glasses=glasses) for glasses in ("none", "round"))
    assert not np.array_equal(render_still(plain, SMALL), render_still(bespectacled, SMALL))
    with pytest.raises(ValueError, match="no trait 'hat'"):
        Identity.sample(4, hat="top")
    with pytest.raises(ValueError, match="none, round, square"):
        Identity.sample(4, glasses="monocle")


def test_motions_are_checked() -> None:
    with pytest.raises(ValueError, match="no curve 'ears'"):
        Motion.neutral(3, ears=1.0)
    with pytest.raises(ValueError, match="2 frames, the motion 3"):
        Motion.neutral(3, opening=np.zeros(2))
    assert len(random_motion(0, 9)[2:5]) == 3


def test_a_portrait_is_a_motionless_frame() -> None:
    who = Identity.sample(5)
    np.testing.assert_array_equal(render_still(who, SMALL), render(who, Motion.neutral(3), SMALL)[2])


def test_landmarks_agree_with_the_picture() -> None:
    size = (128, 128)
    for seed in range(5):
        who = Identity.sample(seed, glasses="none", beard="none")
        motion = Motion.neutral(
            4, opening=[0.0, 0.5, 0.9, 0.5], x=[0, 0.1, -0.1, 0], y=[0, 0, 0.1, -0.05], roll=[0, 0.1, -0.1, 0],
            turn=[0, 1, 0, -1],
        )  # fmt: skip
        drawn, truth = render(who, motion, size), landmarks(who, motion, size)
        found, unit = mouth(drawn), face_unit(*size)
        assert found.found.all()
        np.testing.assert_allclose(found.x * unit, truth["mouth"][:, 0], atol=1.6)
        for name in ("eye_left", "eye_right"):  # the pupil is the darkest there is in the middle of an eye
            for frame, (x, y) in zip(drawn, truth[name], strict=True):
                near = frame[round(y) - 5 : round(y) + 6, round(x) - 5 : round(x) + 6].sum(-1)
                row, column = np.argwhere(near < near.min() + 60).mean(0)
                assert np.hypot(row - 5, column - 5) < 3.0
        assert truth["opening_px"][0] == 0
        np.testing.assert_allclose(
            truth["mouth_bottom"][:, 1] - truth["mouth_top"][:, 1], truth["opening_px"], atol=0.2
        )
