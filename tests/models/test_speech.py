"""The voice: states, clocks, and the two ways to hand it out block by block."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from liveavatar.models.speech import (
    FullAudio,
    PcmBuffer,
    PcmSource,
    SpeechEncoder,
    WindowAudio,
    bucket,
    feature_index,
    normalise,
    to_30hz,
)

BLOCK = 7680  # samples of 12 video frames

TINY = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


@pytest.fixture(scope="module")
def encoder() -> SpeechEncoder:
    torch.manual_seed(3)
    model = SpeechEncoder(**TINY)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.4)
    return model


def voice(seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(int(seconds * 16000), generator=torch.Generator().manual_seed(seed)) * 0.1


class Ear(torch.nn.Module):
    """Stands in for the encoder where only time matters: state i is the sample 320 i."""

    def hidden_states(self, sound):
        count = (len(sound) - 400) // 320 + 1
        return sound[: 320 * count : 320].reshape(1, count, 1)


# ---- the encoder


def test_states_come_at_50_hz_from_every_layer(encoder):
    states = encoder.hidden_states(voice(1.0))
    assert states.shape == (3, 49, 16)
    assert encoder.hidden_states(voice(0.01)).shape == (3, 1, 16)
    padded = torch.cat([voice(0.01), torch.zeros(400 - 160)])
    assert torch.equal(encoder.hidden_states(voice(0.01)), encoder.hidden_states(padded))


def test_the_last_state_has_been_through_the_final_norm(encoder):
    sound, norm, seen = voice(0.5), encoder.model.encoder.layer_norm, []
    handle = norm.register_forward_hook(lambda _module, args, out: seen.append((args[0], out)))
    states = encoder.hidden_states(sound)
    handle.remove()
    ((before, after),) = seen
    assert torch.equal(states[-1], after[0])
    assert not torch.allclose(states[-1], before[0])
    # the others have not: state 1 is what layer 0 makes of state 0
    first = encoder.model.encoder.layers[0](states[:1], attention_mask=None)
    torch.testing.assert_close((first[0] if isinstance(first, tuple) else first)[0], states[1])


def test_an_encoder_from_a_published_config_and_a_wrong_one():
    config = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "layer_norm_eps": 1e-3,
        "conv_dim": [8] * 7, "conv_bias": True,
        "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    }  # fmt: skip
    built = SpeechEncoder.from_config(config)
    assert len(built.model.encoder.layers) == 2
    assert built.model.encoder.layer_norm.eps == 1e-3
    with pytest.raises(ValueError, match="do_stable_layer_norm"):
        SpeechEncoder.from_config({**config, "do_stable_layer_norm": False})
    with pytest.raises(ValueError, match="conv_stride"):
        SpeechEncoder.from_config({**config, "conv_stride": [5, 2, 2, 2, 2, 2, 4]})


def test_built_on_meta_and_filled_later_gives_the_same(encoder):
    with torch.device("meta"):
        later = SpeechEncoder(**TINY)
    later.load_state_dict(encoder.state_dict(), strict=True, assign=True)
    assert not any(tensor.is_meta for tensor in [*later.parameters(), *later.buffers()])
    with torch.inference_mode():
        assert torch.equal(later.train().hidden_states(voice(0.3)), encoder.eval().hidden_states(voice(0.3)))


def test_half_precision_weights_take_plain_sound(encoder):
    half = SpeechEncoder(**TINY)
    half.load_state_dict(encoder.state_dict())
    assert half.bfloat16().hidden_states(voice(0.3)).dtype == torch.bfloat16


# ---- the clocks


def test_normalising_uses_the_population_variance():
    sound = normalise(torch.tensor([1.0, 2.0, 6.0]))
    expected = (np.array([1.0, 2.0, 6.0]) - 3) / math.sqrt(14 / 3 + 1e-7)
    np.testing.assert_allclose(sound.numpy(), expected, rtol=1e-6)
    assert torch.equal(normalise(torch.full((5,), 0.5)), torch.zeros(5))


def test_50_hz_to_30_hz_keeps_both_ends():
    states = torch.arange(100.0).reshape(1, 100, 1)
    slow = to_30hz(states)[0, :, 0]
    assert len(slow) == 60
    assert slow[0] == 0
    assert slow[-1] == 99
    torch.testing.assert_close(slow.diff(), torch.full((59,), 99 / 59), atol=1e-5, rtol=0)
    assert to_30hz(states[:, :1]).shape == (1, 1, 1)


def test_frames_take_the_feature_that_numpy_rounds_to():
    frames = np.arange(-50, 5000)
    expected = np.round(frames / 25 * 30).astype(int)
    assert feature_index(torch.from_numpy(frames)).tolist() == expected.tolist()


@pytest.mark.parametrize(("length", "clips"), [(1, 1), (57, 1), (58, 2), (115, 2), (116, 3), (288, 6)])
def test_the_bucket_fills_whole_clips_with_silence(length, clips):
    taken = bucket(torch.arange(1.0, length + 1).reshape(1, length, 1))
    assert taken.shape == (1, 1, 48 * clips)
    for frame, value in enumerate(taken[0, 0].tolist()):
        source = round(1.2 * frame)
        assert value == (source + 1 if source < length else 0)


# ---- finished recordings


def test_blocks_of_a_recording_are_slices_of_its_features(encoder):
    audio = FullAudio(encoder, [voice(2.5, 1), voice(1.5, 2)])
    assert audio.features.shape == (2, 3, 16, 48)  # the shorter one decides
    assert audio.num_clips == 1
    for number in range(4):
        assert torch.equal(audio.block(number), audio.features[..., 12 * number : 12 * number + 12])
    assert not audio.block(4).any()
    alone = FullAudio(encoder, [voice(1.5, 2)])
    assert torch.equal(alone.features[0], audio.features[1])


def test_sound_that_leads_is_conditioned_later(encoder):
    plain, led = FullAudio(encoder, [voice(2.0)]), FullAudio(encoder, [voice(2.0)], lead_frames=3)
    assert torch.equal(led.block(0)[..., 3:], plain.block(0)[..., :9])
    assert torch.equal(led.block(0)[..., :3], plain.block(0)[..., :1].expand(-1, -1, -1, 3))
    assert torch.equal(led.block(2)[..., :3], plain.block(1)[..., -3:])


def test_clip_length_is_a_parameter(encoder):
    audio = FullAudio(encoder, [voice(1.0)], clip_frames=24)
    assert (audio.num_clips, audio.features.shape[-1]) == (2, 48)


# ---- long and live streams


def test_a_buffer_is_silent_outside_itself():
    buffer = PcmBuffer(torch.arange(1.0, 5.0))
    assert isinstance(buffer, PcmSource)
    assert buffer.read(-2, 6).tolist() == [0, 0, 1, 2, 3, 4, 0, 0]
    assert buffer.read(1, 3).tolist() == [2, 3]
    assert buffer.read(-5, -2).tolist() == [0, 0, 0]
    assert buffer.read(7, 9).tolist() == [0, 0]


@pytest.mark.parametrize("lead", [0, 3])
@pytest.mark.parametrize(("left", "right"), [(0.0, 0.0), (0.1, 0.001), (0.0, 0.2), (0.1, 0.4)])
def test_each_frame_takes_the_instant_that_the_whole_recording_would(lead, left, right):
    """With states that simply are samples, a frame is the ramp's value at its own time, in every block."""
    ramp = torch.arange(160000.0).div(160000)
    audio = WindowAudio(Ear(), [PcmBuffer(ramp)], left_s=left, right_s=right, norm_s=1.0, lead_frames=lead)
    for number in range(1, 9):
        frames = np.arange(12 * number - lead, 12 * number - lead + 12)
        times = np.round(1.2 * frames) * 5 / 3 * 320
        end = (12 * number - lead + 12) * 640 + round(right * 16000)
        recent = np.arange(max(0, end - 16000), end) / 160000
        expected = (times / 160000 - recent.mean()) / math.sqrt(recent.var() + 1e-7)
        np.testing.assert_allclose(audio.block(number)[0, 0, 0].numpy(), expected, atol=2e-4)


def test_every_window_has_the_same_length_and_no_frame_falls_outside():
    lengths = set()

    class Strict(Ear):
        def hidden_states(self, sound):
            lengths.add(len(sound))
            return super().hidden_states(sound)

    for lead in range(13):
        audio = WindowAudio(Strict(), [PcmBuffer(voice(6))], left_s=0.0, right_s=0.0, lead_frames=lead)
        for number in range(12):
            assert audio.block(number).shape == (1, 1, 1, 12)
    assert len(lengths) == 1


@pytest.mark.parametrize(("right", "lead"), [(0.0, 0), (0.1, 3), (0.4, 0)])
def test_nothing_after_the_declared_look_ahead_is_heard(encoder, right, lead):
    pcm = voice(4.0, 7)
    settings = {"left_s": 0.5, "right_s": right, "norm_s": 1.0, "lead_frames": lead}
    number = 3
    horizon = (12 * (number + 1) - lead) * 640 + round(right * 16000)
    before = WindowAudio(encoder, [PcmBuffer(pcm)], **settings)
    assert before.span(number)[1] == horizon
    block = before.block(number)

    later = pcm.clone()
    later[horizon:] = 5.0
    assert torch.equal(WindowAudio(encoder, [PcmBuffer(later)], **settings).block(number), block)
    inside = pcm.clone()
    inside[horizon - 1] += 1.0
    assert not torch.equal(WindowAudio(encoder, [PcmBuffer(inside)], **settings).block(number), block)


def test_nothing_before_the_span_is_heard(encoder):
    pcm = voice(4.0, 8)
    settings = {"left_s": 0.5, "right_s": 0.1, "norm_s": 1.0}
    audio = WindowAudio(encoder, [PcmBuffer(pcm)], **settings)
    start, stop = audio.span(5)
    assert stop - start == 7680 + 8000 + 1600  # here the window is longer than norm_s
    changed = pcm.clone()
    changed[:start] = 3.0
    assert torch.equal(WindowAudio(encoder, [PcmBuffer(changed)], **settings).block(5), audio.block(5))
    changed[start] = 3.0
    assert not torch.equal(WindowAudio(encoder, [PcmBuffer(changed)], **settings).block(5), audio.block(5))


class Arriving:
    """A live source: pieces of any size, kept apart, with only what has arrived readable."""

    def __init__(self, pcm: torch.Tensor, sizes: list[int]) -> None:
        self.pieces, start = [], 0
        for turn in range(10**6):
            if start >= len(pcm):
                break
            size = sizes[turn % len(sizes)]
            self.pieces.append((start, pcm[start : start + size].clone()))
            start += size

    def read(self, start: int, stop: int) -> torch.Tensor:
        out = torch.zeros(stop - start)
        for begin, piece in self.pieces:
            low, high = max(start, begin), min(stop, begin + len(piece))
            if low < high:
                out[low - start : high - start] = piece[low - begin : high - begin]
        return out


def test_neither_arrival_nor_order_nor_company_changes_a_block(encoder):
    pcm, other = voice(3.0, 9), voice(3.0, 10)
    settings = {"left_s": 0.4, "right_s": 0.1, "norm_s": 0.7}
    audio = WindowAudio(encoder, [PcmBuffer(pcm)], **settings)
    blocks = [audio.block(number) for number in range(5)]
    pieces = WindowAudio(encoder, [Arriving(pcm, [1, 977, 320, 4001])], **settings)
    for number in (4, 0, 3, 1, 2):
        assert torch.equal(pieces.block(number), blocks[number])
    both = WindowAudio(encoder, [PcmBuffer(other), PcmBuffer(pcm)], **settings)
    assert both.block(2).shape == (2, 3, 16, 12)
    assert torch.equal(both.block(2)[1:], blocks[2])


def test_a_block_moves_with_its_sound(encoder):
    """The same sound 10 blocks later gives the same features (frames round alike every 5 blocks)."""
    pcm = voice(2.0, 11)
    settings = {"left_s": 0.3, "right_s": 0.1, "norm_s": 0.5}
    moved = PcmBuffer(torch.cat([torch.zeros(10 * BLOCK), pcm]))
    here, there = (
        WindowAudio(encoder, [PcmBuffer(pcm)], **settings),
        WindowAudio(encoder, [moved], **settings),
    )
    assert torch.equal(here.block(2), there.block(12))


def test_before_the_beginning_there_is_silence(encoder):
    settings = {"left_s": 0.2, "right_s": 0.1, "norm_s": 1.0}
    pcm = voice(1.0, 12)
    early = WindowAudio(encoder, [PcmBuffer(pcm)], **settings, lead_frames=36).block(0)  # ends long before sample 0
    nothing = WindowAudio(encoder, [PcmBuffer(torch.zeros(9))], **settings, lead_frames=36).block(0)
    assert torch.isfinite(early).all()
    assert torch.equal(early, nothing)
    started = WindowAudio(encoder, [PcmBuffer(pcm)], **settings, lead_frames=3).block(0)
    assert not torch.equal(started, nothing)


def test_four_steps_of_a_block_encode_once_and_memory_stays_flat(encoder):
    calls = []

    class Counting(Ear):
        def hidden_states(self, sound):
            calls.append(len(sound))
            return super().hidden_states(sound)

    audio = WindowAudio(Counting(), [PcmBuffer(voice(3))], left_s=0.2, right_s=0.1)
    for number in range(5):
        blocks = [audio.block(number) for _step in range(4)]
        assert all(block is blocks[0] for block in blocks)
    assert len(calls) == 5
    assert sum(isinstance(value, torch.Tensor) for value in vars(audio).values()) == 0
    assert audio._last is not None
    assert audio._last[0] == 4


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"right_s": 0.5}, r"speech\.right_s"),
        ({"right_s": -0.1}, r"speech\.right_s"),
        ({"left_s": -1.0}, r"speech\.left_s"),
        ({"norm_s": 0.0}, r"speech\.norm_s"),
        ({"lead_frames": -3}, r"speech\.lead_frames"),
        ({"sources": []}, "no sound"),
    ],
)
def test_wrong_settings_are_named(encoder, change, key):
    settings = {"sources": [PcmBuffer(voice(1))], "left_s": 1.0, "right_s": 0.1, **change}
    with pytest.raises(ValueError, match=key):
        WindowAudio(encoder, **settings)


def test_a_recording_is_needed(encoder):
    with pytest.raises(ValueError, match="no sound"):
        FullAudio(encoder, [])
