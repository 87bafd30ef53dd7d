"""Decoding: how many frames come when, and that they are those of the codec."""

import pytest
import torch
from torch import Tensor

from liveavatar.checkpoint.load import materialise
from liveavatar.checkpoint.read import RandomWeights
from liveavatar.models.vae.codec import WanCodec
from liveavatar.sampling.decoding import ClipDecoding, Decoded, Decoding, StreamDecoding
from tests.scene import draw


@pytest.fixture(scope="module")
def codec() -> WanCodec:
    with torch.device("meta"):
        model = WanCodec(base_dim=4)
    materialise(model, RandomWeights(0), torch.device("cpu"), torch.float32)
    return model


def run(decoding: Decoding, blocks: list[Tensor]) -> list[Decoded]:
    with torch.no_grad():
        pieces = [piece for index, block in enumerate(blocks) for piece in decoding.push(index, block)]
        return pieces + list(decoding.flush())


def blocks_of(count: int) -> list[Tensor]:
    return [draw(b, 1, 16, 3, 2, 2) for b in range(count)]


def test_a_streamed_block_is_twelve_frames_the_first_nine(codec: WanCodec) -> None:
    blocks, motion = blocks_of(4), draw(9, 1, 16, 19, 2, 2)
    with torch.no_grad():
        pieces = run(StreamDecoding(codec, motion), blocks)
        whole = codec.decode(torch.cat((motion[:, :, :7], *blocks), dim=2))
    assert [piece.frames.shape[2] for piece in pieces] == [9, 12, 12, 12]
    assert [list(piece.latents) for piece in pieces] == [[0], [1], [2], [3]]
    assert all(torch.equal(piece.latents[b], blocks[b][0]) for b, piece in enumerate(pieces))
    frames = torch.cat([piece.frames for piece in pieces], dim=2)
    torch.testing.assert_close(frames, whole[:, :, 28:], rtol=0, atol=1e-5)  # 25 frames unseen, then 3 dropped


def test_two_streams_share_a_codec(codec: WanCodec) -> None:
    first, second = blocks_of(2), [block + 1 for block in blocks_of(2)]
    motion = draw(9, 1, 16, 19, 2, 2)
    alone = [[piece.frames for piece in run(StreamDecoding(codec, motion), blocks)] for blocks in (first, second)]
    with torch.no_grad():
        both = [StreamDecoding(codec, motion) for _ in range(2)]
        for index in range(2):
            for number, blocks in enumerate((first, second)):
                (piece,) = both[number].push(index, blocks[index])
                assert torch.equal(piece.frames, alone[number][index])


def test_clips_are_decoded_behind_their_motion_encoded_anew(codec: WanCodec) -> None:
    blocks, window = blocks_of(5), draw(8, 1, 3, 33, 16, 16).clamp(-1, 1)
    with torch.no_grad():
        motion = codec.encode(window)
        pieces = run(ClipDecoding(codec, motion, window, per_clip=2), blocks)
        shown = []
        for number, count in enumerate((2, 2, 1)):  # the last clip ends early and comes with the flush
            clip = torch.cat(blocks[2 * number : 2 * number + count], dim=2)
            frames = codec.decode(torch.cat((motion, clip), dim=2), plain=True)[:, :, -12 * count :]
            shown.append(frames[:, :, 3:] if number == 0 else frames)
            window = torch.cat((window, shown[-1]), dim=2)[:, :, -33:]
            motion = codec.encode(window)
    assert [piece.frames.shape[2] for piece in pieces] == [21, 24, 12]
    assert [list(piece.latents) for piece in pieces] == [[0, 1], [2, 3], [4]]
    for piece, expected in zip(pieces, shown, strict=True):
        torch.testing.assert_close(piece.frames, expected, rtol=0, atol=1e-5)


def test_nothing_is_left_after_whole_clips(codec: WanCodec) -> None:
    window = draw(8, 1, 3, 33, 16, 16).clamp(-1, 1)
    with torch.no_grad():
        decoding = ClipDecoding(codec, codec.encode(window), window, per_clip=2)
    before = decoding.motion
    pieces = run(decoding, blocks_of(2))
    assert len(pieces) == 1
    assert list(decoding.flush()) == []
    assert not torch.equal(decoding.motion, before)
    assert decoding.window.shape[2] == 33
