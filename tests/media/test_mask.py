"""Masks of several speakers: reading them, and what of the picture each voice may move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from liveavatar.media.mask import actor_masks, load_masks


def _box(rows: slice, cols: slice, size: tuple[int, int] = (20, 20)) -> np.ndarray:
    mask = np.zeros((1, *size), np.uint8)
    mask[0, rows, cols] = 255
    return mask


def test_each_voice_stays_away_from_the_other_and_shares_the_background() -> None:
    left, right = _box(slice(5, 10), slice(2, 6)), _box(slice(5, 10), slice(14, 18))
    mask = actor_masks([left, right], frames=4, rows=20, cols=20)
    assert mask.shape == (2, 4, 20, 20)
    assert mask.dtype == torch.float32
    assert (mask[0, :, 4:11, 13:19] == 0).all()  # the other one, wider by one token on each side
    assert mask[0].sum() == 4 * (400 - 7 * 6)
    assert (mask[:, :, 0] == 1).all()


def test_the_later_speaker_wins_an_overlap_and_contested_places_belong_to_nobody() -> None:
    first, second = _box(slice(0, 4), slice(0, 10)), _box(slice(0, 4), slice(8, 18))
    mask = actor_masks([first, second], frames=1, rows=20, cols=20)[:, 0, 1]
    assert mask[0, 7:9].tolist() == [0, 0]
    assert mask[1, 7:9].tolist() == [0, 0]
    assert mask[1, 9:17].tolist() == [1] * 8
    assert mask[0, 9:17].tolist() == [0] * 8
    assert mask[0, 0:7].tolist() == [1] * 7
    assert mask[1, 0:7].tolist() == [0] * 7


def test_the_margin_grows_with_the_speaker() -> None:
    large = _box(slice(10, 35), slice(10, 20), (50, 50))  # 25 tokens high: a tenth, rounded up, is 3
    other = _box(slice(45, 46), slice(45, 46), (50, 50))
    kept = actor_masks([other, large], frames=1, rows=50, cols=50)[0, 0]
    free = kept.nonzero().tolist()
    assert kept.sum() == 2500 - (25 + 6) * (10 + 6)
    assert [7, 7] not in free
    assert [6, 7] in free


def test_a_speaker_who_leaves_takes_no_place() -> None:
    gone = np.concatenate([_box(slice(5, 10), slice(2, 6)), np.zeros((1, 20, 20), np.uint8)])
    stays = _box(slice(5, 10), slice(14, 18))
    mask = actor_masks([gone, torch.from_numpy(stays)], frames=4, rows=20, cols=20)
    assert (mask[1, -1] == 1).all()
    assert (mask[1, 0] == 0).any()


def test_load_masks_reads_pictures_and_folders_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "anna"
    folder.mkdir()
    for number in (1, 2, 10):
        pixels = np.zeros((6, 8), np.uint8)
        pixels[:, : number // 2] = 7
        Image.fromarray(pixels).save(folder / f"frame_{number}.png")
    (folder / "notes.txt").write_text("no picture")
    blue = np.zeros((6, 8, 3), np.uint8)
    blue[0, 0, 2] = 1
    Image.fromarray(blue).save(tmp_path / "bert.png")
    anna, bert = load_masks([folder, tmp_path / "bert.png"])
    assert anna.shape == (3, 6, 8)
    assert anna.dtype == np.uint8
    assert anna.sum(axis=(1, 2)).tolist() == [0, 6, 30]
    assert bert.sum() == bert[0, 0, 0] == 1


def test_what_is_said_about_bad_masks(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (8, 6)).save(tmp_path / "mixed" / "1.png")
    Image.new("L", (8, 7)).save(tmp_path / "mixed" / "2.png")
    Image.new("L", (8, 6)).save(tmp_path / "small.png")
    Image.new("L", (9, 6)).save(tmp_path / "wide.png")
    for names, said in (
        (["missing"], "does not exist"),
        (["none"], "without pictures"),
        (["text.png"], "not a picture"),
        (["mixed"], "2.png is 8x7 and 1.png 8x6"),
        (["small.png", "wide.png"], "one size"),
    ):
        with pytest.raises(ValueError, match=r"^request\.masks") as caught:
            load_masks([tmp_path / name for name in names])
        assert said in str(caught.value)
