"""Data: pictures rendered once, clips of a user's own, and what is wrong with them told by data.dir."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from liveavatar.media.mp4 import Mp4Writer
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.training.data import HELD_OUT, Pictures, ToonSource, assemble, cut_out, eye_boxes, mouth_boxes
from liveavatar.training.draws import DitSettings, draw_passage, draw_walk
from liveavatar.training.folder import FolderSource
from liveavatar.training.latents import box_share, furthest, lagged
from liveavatar.training.loop import Draw
from liveavatar.training.losses import face_weight
from liveavatar.training.sources import Look
from liveavatar.training.toon import Identity, idle
from liveavatar.training.toon.prompts import read_prompt
from tests.training.source import Discs


def clip(path: Path, frames: int = 30, prompt: str | None = "a test card", rate: int = 16_000) -> Path:
    writer = Mp4Writer(path, 64, 48, 25, rate)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), np.uint8).repeat(frames, axis=0)
    writer.write(pixels, np.sin(np.arange(frames * rate // 25) / 20).astype(np.float32) * 0.3)
    writer.close()
    if prompt is not None:
        path.with_suffix(".txt").write_text(prompt)
    return path


def test_a_folder_of_clips_is_a_source(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        clip(tmp_path / f"{name}.mp4")
    source = FolderSource(str(tmp_path), seconds=1.0)
    assert (list(source.kept), list(source.held_out)) == ([0, 1], [2])
    talk = source.talk(0, (64, 64))
    assert talk.frames.shape == (25, 64, 64, 3)
    assert talk.sound.shape == (16_000,)
    assert talk.prompt == "a test card"
    assert source.look(1, 40, (32, 32)).frames.shape == (40, 32, 32, 3)
    known = source.token
    clip(tmp_path / "a.mp4", frames=20)
    assert FolderSource(str(tmp_path), seconds=1.0).token != known


def test_one_clip_serves_for_both(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    source = FolderSource(str(tmp_path))
    assert (list(source.kept), list(source.held_out)) == ([0], [0])


@pytest.mark.parametrize("fault", ["missing", "empty", "broken", "short", "silent", "no prompt"])
def test_a_folder_that_cannot_be_used_is_told_by_its_key(tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "clips"
    if fault != "missing":
        folder.mkdir()
    if fault == "broken":
        (folder / "a.mp4").write_bytes(b"not a video")
        (folder / "a.txt").write_text("x")
    if fault == "short":
        clip(folder / "a.mp4", frames=5)
    if fault == "silent":
        clip(folder / "a.mp4", rate=0)
    if fault == "no prompt":
        clip(folder / "a.mp4", prompt=None)
    with pytest.raises(ValueError, match=r"data\.dir"):
        FolderSource(str(folder))


def test_pictures_are_rendered_once_and_whole(tmp_path: Path) -> None:
    source = Discs(identities=3)
    pictures = Pictures(source, source.kept, 6, (64, 64), tmp_path)
    pictures.prepare()
    batch = pictures.batch(np.random.default_rng(0), 4, 5, (32, 32), mouth=2.0)
    assert batch.video.shape == (4, 3, 5, 32, 32)
    assert batch.weight.shape == (4, 1, 5, 32, 32)
    assert set(batch.weight.unique().tolist()) == {1.0, 3.0}
    source.look = None  # type: ignore[assignment]
    again = Pictures(source, source.kept, 6, (64, 64), tmp_path)
    again.prepare()
    same = again.batch(np.random.default_rng(0), 4, 5, (32, 32), mouth=2.0)
    assert torch.equal(same.video, batch.video)


def test_a_window_is_cut_out_around_the_mouth() -> None:
    rows, columns = np.mgrid[:64, :96]
    frames = np.repeat(np.stack((rows, columns, 0 * rows), axis=-1)[None], 3, axis=0).astype(np.uint8)
    look = Look(frames, np.repeat(np.float32([[0.5, 0.75, 0.625, 0.875]]), 3, axis=0))
    cut = cut_out(np.random.default_rng(0), look, (32, 48))
    assert cut.frames.shape == (3, 32, 48, 3)
    assert np.array_equal(cut.frames[0], cut.frames[2])
    left, top, right, bottom = cut.mouth[0] * [48, 32, 48, 32]
    place = cut.frames[0, 0, 0].astype(int)  # row and column of the window's corner
    assert np.allclose(
        [left + place[1], top + place[0], right + place[1], bottom + place[0]], [48, 48, 60, 56], atol=1e-3
    )
    assert 0 < left < right < 48
    assert 0 < top < bottom <= 32


def test_scaling_and_mirroring_keep_what_is_seen() -> None:
    frames = np.zeros((1, 64, 64, 3), np.uint8)
    frames[:, :32] = 255
    batch = assemble([Look(frames, np.float32([[0, 0, 0.5, 0.5]]))], (32, 32), 1.0)
    assert torch.equal(batch.video[0, :, 0, :16], torch.ones(3, 16, 32))
    assert torch.equal(batch.video[0, :, 0, 16:], -torch.ones(3, 16, 32))
    assert float(batch.weight[0, 0, 0, :16, :16].min()) == 2
    assert float(batch.weight[0, 0, 0, 16:].max()) == 1


def test_toons_are_a_source_and_strangers_are_held_out() -> None:
    source = ToonSource(identities=4, held_out=2)
    assert min(source.held_out) == HELD_OUT > max(source.kept)
    assert list(ToonSource(identities=2, first=7).kept) == [7, 8]
    with pytest.raises(ValueError, match=r"data\.first=999999: .* from 0 to 999998"):
        ToonSource(identities=2, first=HELD_OUT - 1)
    look = source.look(0, 2, (64, 64))
    left, top, right, bottom = look.mouth[0]
    assert 0.2 < left < 0.5 < right < 0.8
    assert 0.5 < top < bottom < 0.9


def test_a_share_of_prompts_asks_for_nods_and_shakes() -> None:
    asked = [read_prompt(prompt) for n in range(40) if (prompt := ToonSource(gestures=0.5)._prompt(n))]
    assert 12 < len(asked) < 28
    assert {wish.gesture for wish in asked} == {"nodding", "shaking"}
    assert len({wish.light for wish in asked}) > 2
    assert ToonSource()._prompt(0) is None
    assert ToonSource(gestures=0.5).token != ToonSource().token  # clips kept before are not taken for these
    with pytest.raises(ValueError, match=r"data\.gestures=1\.5 is a share"):
        ToonSource(gestures=1.5)


def test_a_share_of_heads_without_sound_swings() -> None:
    strays = []
    for source in (ToonSource(gestures=1.0), ToonSource()):
        middles = [source.look(n, 25, (64, 64)).mouth.reshape(25, 2, 2).mean(1) for n in range(12)]
        strays.append(np.mean([np.ptp(path, axis=0).max() for path in middles]))
    assert strays[0] > 2 * strays[1]


def test_a_share_of_people_has_a_full_beard() -> None:
    source = ToonSource(seconds=0.2, beards=0.5)
    faces = [source._face(n) for n in range(40)]
    bearded = [face for face in faces if face]
    assert 12 < len(bearded) < 28
    assert {face.beard for face in bearded} == {"full"}
    assert len({face.seed for face in bearded}) == len(bearded)
    number = next(n for n, face in enumerate(faces) if face)
    assert source._clip(number).identity == faces[number]
    assert source._face(HELD_OUT + number) is None  # strangers to validate with are as they were
    assert len({ToonSource(**given).token for given in ({}, {"beards": 0.5}, {"gestures": 0.5})}) == 3
    with pytest.raises(ValueError, match=r"data\.beards=-1 is a share"):
        ToonSource(beards=-1)


def test_other_words_ask_for_the_same() -> None:
    source, rng = ToonSource(identities=4), np.random.default_rng(0)
    for _ in range(200):
        prompt = source.wish(rng).prompt
        others = {source.reword(prompt, rng) for _ in range(5)}
        assert len(others) > 1
        assert {read_prompt(other) for other in others} == {read_prompt(prompt)}


def test_eyes_and_brows_are_told_apart_from_the_mouth() -> None:
    who, motion = Identity.sample(2), idle(2, 8)
    eyes, mouth = (
        box_share(boxes(who, motion, (128, 128)), np.arange(8), (128, 128)) for boxes in (eye_boxes, mouth_boxes)
    )
    assert eyes.shape == mouth.shape == (2, 16, 16)
    rows = torch.arange(16.0)[:, None]
    assert float((eyes[0] * rows).sum() / eyes[0].sum()) + 2 < float((mouth[0] * rows).sum() / mouth[0].sum())
    assert 6 < float(eyes[0].sum()) < 40
    assert not box_share(None, np.arange(8), (128, 128)).any()


def test_lids_are_kept_as_far_as_they_shut_within_a_latent() -> None:
    lids = np.float32([0, 0, 0.4, 0, 0, 0, 1, 0])
    assert furthest(lids, np.arange(8)).tolist() == pytest.approx([0.4, 1])
    assert furthest(lids, lagged(8, 8)).tolist() == pytest.approx([0, 0.4])
    assert furthest(None, np.arange(8)).tolist() == [0, 0]


def test_shut_eyes_are_weighed_by_themselves() -> None:
    mouth, eyes = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    mouth[..., 3, 1], eyes[..., 0, 0] = 1, 0.5
    weight = face_weight(mouth, eyes, torch.tensor([[0.0, 1.0]]), by=(3.0, 2.0, 20.0))
    assert weight.shape == (1, 1, 2, 4, 4)
    assert float(weight.mean()) == pytest.approx(1)
    still, shut = weight[0, 0] / weight[0, 0, 0, 1, 1]
    assert (float(still[3, 1]), float(still[0, 0])) == pytest.approx((4, 2))
    assert (float(shut[3, 1]), float(shut[0, 0])) == pytest.approx((4, 12))


def test_weights_of_a_face_cannot_be_negative() -> None:
    for name in ("mouth", "eyes", "lids"):
        with pytest.raises(ValueError, match=rf"dit\.{name}=-1"):
            DitSettings(**{name: -1.0})


def test_the_picture_lags_as_inference_drops() -> None:
    assert lagged(9, 12).tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_passages_are_those_of_inference() -> None:
    settings, sampler = DitSettings(blocks=6), EulerSampler()
    drawn = [draw_passage(np.random.default_rng(i), settings, sampler, [16, 9], 4, (4, 30)) for i in range(400)]
    young = [p for p in drawn if p.first == 0]
    assert 0.25 < len(young) / len(drawn) < 0.45
    assert all(p.starts == [0, 0] for p in young)
    assert all(4 <= p.first <= settings.longest for p in drawn if p.first)
    assert all(0 <= s <= length - 6 for p in drawn for s, length in zip(p.starts, [16, 9], strict=True))
    assert all(4 <= d <= 30 for p in drawn for d in p.distances)
    shared = [p for p in drawn if len(set(p.sigmas)) == 1]
    assert 0.6 < len(shared) / len(drawn) < 0.8
    levels = {round(float(s), 5) for s in sampler.sigmas[:-1]}
    hits = [round(p.sigmas[0], 5) in levels for p in shared]
    assert 0.5 < np.mean(hits) < 0.7
    assert {round(p.sigmas[0], 5) for p in shared} >= levels


def test_passages_that_the_model_walks_into_stand_at_a_level_of_the_sampler() -> None:
    settings, sampler = DitSettings(blocks=6, walked=0.5), EulerSampler()
    common = [Draw(0, i, rank=i % 3).common for i in range(400)]
    walked = [draw_walk(np.random.default_rng(key), settings, sampler) for key in common]
    pairs = list(enumerate(walked))
    drawn = [draw_passage(np.random.default_rng(i), settings, sampler, [16, 9], 4, (4, 30), w) for i, w in pairs]
    assert [p.walked for p in drawn] == walked
    walks = [p for p in drawn if p.walked is not None]
    assert 0.4 < len(walks) / len(drawn) < 0.6
    assert all(set(p.sigmas) == {float(sampler.sigmas[p.walked or 0])} for p in walks)
    # the last of four steps begins with hardly any noise: it cannot learn to mend what it is given
    assert {p.walked for p in walks} == {0, 1, 2}
    assert 0.5 < np.mean([p.walked == 2 for p in walks]) < 0.7
    alone = DitSettings(walked=1.0)
    assert draw_walk(np.random.default_rng(0), alone, EulerSampler(steps=1)) == 0
    assert draw_walk(np.random.default_rng(0), DitSettings(), sampler) is None


def test_ranks_walk_as_far_and_draw_apart() -> None:
    one, other = Draw(3, 4, 0, rank=0), Draw(3, 4, 0, rank=1)
    assert one.common == other.common
    assert one.key != other.key
    keys = [one.key, other.key, one.common, Draw(3, 5, 0, rank=0).common]
    assert len({float(np.random.default_rng(key).random()) for key in keys}) == 4


def test_a_share_of_walks_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"dit\.walked=2 is a share"):
        DitSettings(walked=2)
