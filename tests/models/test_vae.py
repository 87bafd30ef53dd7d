"""The VAE as a stream: cuts, neighbours and old states change nothing."""

from __future__ import annotations

import pytest
import torch

from liveavatar.models.vae import LATENTS_MEAN, LATENTS_STD, WanCodec, stream_decode, stream_encode
from liveavatar.models.vae.quick import _short, plain_layers

TINY = {"base_dim": 4}


@pytest.fixture(scope="module")
def codec() -> WanCodec:
    torch.manual_seed(11)
    model = WanCodec(**TINY)
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            parameter.data.mul_(1.5)
        elif name.endswith("gamma"):
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return torch.randn(1, 16, 7, 3, 2, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    return torch.rand(1, 3, 17, 24, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_shapes_and_range(codec, latents, video):
    frames = codec.decode(latents)
    assert frames.shape == (1, 3, 25, 24, 16)
    assert frames.abs().max() <= 1
    assert frames.std() > 1e-3
    assert codec.encode(video).shape == (1, 16, 5, 3, 2)
    assert codec.decode(10 * latents[:, :, :1]).shape[2] == 1


def test_it_is_the_librarys_own_codec_with_statistics(codec, latents, video):
    mean = torch.tensor(LATENTS_MEAN).view(1, 16, 1, 1, 1)
    std = torch.tensor(LATENTS_STD).view(1, 16, 1, 1, 1)
    expected = (codec.vae.encode(video).latent_dist.mode() - mean) / std
    torch.testing.assert_close(codec.encode(video), expected, atol=2e-6, rtol=0)
    decoded = codec.vae.decode(codec.denormalise(latents)).sample
    torch.testing.assert_close(codec.decode(latents), decoded, atol=3e-5, rtol=0)


@pytest.mark.parametrize("size", [(3, 2), (8, 8), (10, 14)])
def test_the_short_way_differs_by_rounding_and_leaves_the_same_state(codec, size):
    latents = torch.randn(1, 16, 5, *size, generator=torch.Generator().manual_seed(4))
    frames, state = stream_decode(codec, latents)
    with plain_layers():
        expected, kept = stream_decode(codec, latents)
    torch.testing.assert_close(frames, expected, atol=5e-5, rtol=0)  # a grey level is 8e-3
    for slot, other in zip(state.cache, kept.cache, strict=True):
        torch.testing.assert_close(slot, other, atol=1e-4, rtol=1e-4)
        assert getattr(slot, "shape", slot) == getattr(other, "shape", other)
    assert torch.equal(codec.decode(latents, plain=True), expected)


def test_the_short_way_is_taken_where_nobody_learns(codec):
    block = codec.vae.decoder.mid_block.resnets[0]
    seen = []

    def takes(x: torch.Tensor) -> bool:
        return _short(block, lambda x, cache: True, x, [])

    x = torch.zeros(1, 16, 1, 2, 2)
    seen.append(takes(x))
    seen.append(takes(x.clone().requires_grad_()))
    block.requires_grad_(True)
    seen.append(takes(x))
    with torch.no_grad():
        seen.append(takes(x))
    block.requires_grad_(False)
    with plain_layers():
        seen.append(takes(x))
    assert seen == [True, False, False, True, False]


def test_a_decoder_that_learns_is_not_written_over(codec, latents):
    state = codec.state_dict()
    learner = WanCodec(**TINY)
    learner.load_state_dict(state)
    learner.vae.decoder.requires_grad_(True)
    learner.decode(latents[:, :, :2]).square().mean().backward()
    gradients = [p.grad for p in learner.vae.decoder.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_values_are_clamped(codec, latents):
    state = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
    state["vae.decoder.conv_out.bias"] += 9
    loud = WanCodec(**TINY)
    loud.load_state_dict(state)
    assert torch.equal(loud.decode(latents[:, :, :2]), torch.ones(1, 3, 5, 24, 16))


@pytest.mark.parametrize("cuts", [(1, 6), (3, 3, 1), (2, 1, 4), (1,) * 7])
def test_a_decoded_stream_equals_the_whole_bit_for_bit(codec, latents, cuts):
    state, pieces = None, []
    for piece in latents.split(cuts, dim=2):
        frames, state = stream_decode(codec, piece, state)
        pieces.append(frames)
    assert torch.equal(torch.cat(pieces, dim=2), codec.decode(latents))
    assert pieces[0].shape[2] == 4 * cuts[0] - 3
    assert state.latents == 7


@pytest.mark.parametrize("cuts", [(1, 16), (5, 12), (3, 3, 3, 8), (1,) * 17])
def test_an_encoded_stream_equals_the_whole_bit_for_bit(codec, video, cuts):
    state, pieces = None, []
    for piece in video.split(cuts, dim=2):
        latents, state = stream_encode(codec, piece, state)
        if latents is not None:
            pieces.append(latents)
    assert torch.equal(torch.cat(pieces, dim=2), codec.encode(video))
    assert state.frames == 17
    assert state.pending is None


def test_frames_that_do_not_fill_a_group_wait_or_are_dropped(codec, video):
    assert torch.equal(codec.encode(video[:, :, :16]), codec.encode(video[:, :, :13]))
    first, state = stream_encode(codec, video[:, :, :3])
    assert first.shape[2] == 1
    assert state.pending.shape[2] == 2
    nothing, state = stream_encode(codec, video[:, :, 3:4], state)
    assert nothing is None
    second, state = stream_encode(codec, video[:, :, 4:5], state)
    assert torch.equal(torch.cat([first, second], dim=2), codec.encode(video[:, :, :5]))


def test_two_streams_share_one_codec(codec, latents, video):
    other = latents.flip(2)
    alone = [codec.decode(latents), codec.decode(other)]
    encoded = codec.encode(video)
    states, pieces = [None, None], [[], []]
    encode_state, encode_pieces = None, []
    for number in range(7):
        for which, stream in enumerate((latents, other)):
            frames, states[which] = stream_decode(codec, stream[:, :, number : number + 1], states[which])
            pieces[which].append(frames)
        if number < 5:
            piece = video[:, :, :1] if number == 0 else video[:, :, 4 * number - 3 : 4 * number + 1]
            found, encode_state = stream_encode(codec, piece, encode_state)
            encode_pieces.append(found)
    for which in range(2):
        assert torch.equal(torch.cat(pieces[which], dim=2), alone[which])
    assert torch.equal(torch.cat(encode_pieces, dim=2), encoded)


def test_an_old_state_can_be_continued_from_again(codec, latents):
    _, state = stream_decode(codec, latents[:, :, :3])
    kept = [slot.clone() if isinstance(slot, torch.Tensor) else slot for slot in state.cache]
    once, _ = stream_decode(codec, latents[:, :, 3:5], state)
    again, _ = stream_decode(codec, latents[:, :, 3:5], state)
    assert torch.equal(once, again)
    for before, after in zip(kept, state.cache, strict=True):
        assert torch.equal(before, after) if isinstance(before, torch.Tensor) else before is after


def test_the_past_matters_and_the_future_does_not(codec, latents):
    changed = latents.clone()
    changed[:, :, 4] += 1
    before, after = codec.decode(latents), codec.decode(changed)
    assert torch.equal(before[:, :, :13], after[:, :, :13])  # latents 0..3 are 13 frames
    assert not torch.equal(before[:, :, 13:17], after[:, :, 13:17])
    assert not torch.equal(before[:, :, 17:], after[:, :, 17:])


def test_the_state_does_not_grow(codec, latents):
    _, state = stream_decode(codec, latents[:, :, :3])
    size = state.nbytes()
    assert size > 0
    for number in range(3, 7):
        _, state = stream_decode(codec, latents[:, :, number : number + 1], state)
        assert state.nbytes() == size


def test_statistics_follow_the_dtype_of_the_latents(codec, latents):
    half = latents.bfloat16()
    mean = torch.tensor(LATENTS_MEAN, dtype=torch.bfloat16).view(1, 16, 1, 1, 1)
    inverse = 1.0 / torch.tensor(LATENTS_STD, dtype=torch.bfloat16).view(1, 16, 1, 1, 1)
    assert torch.equal(codec.normalise(half), (half - mean) * inverse)
    torch.testing.assert_close(codec.denormalise(codec.normalise(latents)), latents)


def test_frames_and_latents_are_cast_to_the_weights(codec, latents, video):
    half = WanCodec(**TINY)
    half.load_state_dict(codec.state_dict())
    half = half.bfloat16()
    assert half.decode(latents[:, :, :2]).dtype == torch.bfloat16
    assert torch.equal(half.encode(video[:, :, :5]), half.encode(video[:, :, :5].bfloat16()))


def test_empty_calls_and_wrong_statistics_are_refused(codec, latents, video):
    with pytest.raises(ValueError, match="0 latents"):
        stream_decode(codec, latents[:, :, :0])
    with pytest.raises(ValueError, match="0 frames"):
        codec.encode(video[:, :, :0])
    with pytest.raises(ValueError, match="latents_mean"):
        WanCodec(base_dim=4, latents_mean=(0.0,))


def test_built_on_meta_and_filled_later_gives_the_same(codec, latents):
    with torch.device("meta"):
        later = WanCodec(**TINY)
    later.load_state_dict(codec.state_dict(), strict=True, assign=True)
    assert torch.equal(later.train().decode(latents[:, :, :2]), codec.eval().decode(latents[:, :, :2]))
    assert not any(parameter.requires_grad for parameter in codec.parameters())
