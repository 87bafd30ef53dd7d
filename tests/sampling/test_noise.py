"""Noise and distances: pure functions of their place, with values that never change silently."""

import numpy as np
import pytest
import torch

from liveavatar.sampling.noise import CounterDistance, CounterNoise, TableDistance, TableNoise, philox_words
from tests.scene import draw

SHAPE = (1, 16, 3, 16, 8)


def test_noise_depends_on_seed_and_block_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    source = CounterNoise(3)
    ahead = source.block(7, SHAPE)
    source.block(1, SHAPE)
    assert ahead.dtype == torch.float32
    assert torch.equal(source.block(7, SHAPE), ahead)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(CounterNoise(3).block(7, SHAPE), ahead)


def test_seeds_and_blocks_share_no_numbers() -> None:
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (-1, 0), (2**63, 0), (0, 10**9)]
    drawn = torch.stack([CounterNoise(seed).block(block, SHAPE).flatten() for seed, block in places])
    similar = torch.corrcoef(drawn) - torch.eye(len(places))
    assert similar.abs().max() < 0.06  # 6144 numbers each: five standard errors
    assert len(drawn.unique()) > 0.99 * drawn.numel()


def test_noise_is_standard_normal() -> None:
    x = torch.stack([CounterNoise(5).block(b, (16, 3, 32, 32)) for b in range(8)]).flatten().double()
    error = len(x) ** -0.5
    assert abs(x.mean()) < 4 * error
    assert abs(x.square().mean() - 1) < 4 * error * 2**0.5
    assert abs(x.pow(4).mean() - 3) < 4 * error * 96**0.5
    below = (x[:, None] < torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])).double().mean(0)
    expected = torch.special.ndtr(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).double())
    assert (below - expected).abs().max() < 2 * error
    assert abs((x[1:] * x[:-1]).mean()) < 4 * error


def test_noise_has_these_values_for_ever() -> None:
    words = philox_words(7, 2, 5, 3, 2)
    assert words.tolist() == [16390404877212904091, 4858404685198594222]
    first = CounterNoise(0).block(0, SHAPE).flatten()
    expected = torch.tensor([0.7397870421, 0.5009579063, 0.0455369167, 1.3085386753])
    torch.testing.assert_close(first[:4], expected, rtol=0, atol=1e-6)
    expected = torch.tensor([-1.2189414501, -1.1205688715, 0.3901929557])
    torch.testing.assert_close(first[-3:], expected, rtol=0, atol=1e-6)
    later = CounterNoise(42).block(1_000_000, SHAPE).flatten()
    expected = torch.tensor([-0.8128081560, 1.0111927986, 0.3253287077, -0.4406568706])
    torch.testing.assert_close(later[:4], expected, rtol=0, atol=1e-6)


def test_odd_counts_are_served_and_negative_blocks_refused() -> None:
    assert CounterNoise(0).block(3, (5, 3)).shape == (5, 3)
    with pytest.raises(ValueError, match="block -1"):
        CounterNoise(0).block(-1, SHAPE)


def test_distances_are_even_over_their_range_and_pinned() -> None:
    distance = CounterDistance(0)
    assert [[distance(b, s) for s in range(4)] for b in range(2)] == [[12, 8, 13, 9], [7, 4, 22, 10]]
    assert [CounterDistance(123)(99, s) for s in range(4)] == [4, 24, 19, 6]
    drawn = torch.tensor([distance(b, s) for b in range(700) for s in range(4)])
    counts = torch.bincount(drawn, minlength=31)
    assert counts[:4].sum() == 0
    assert len(counts) == 31
    mean = len(drawn) / 27
    assert ((counts[4:] - mean).abs() < 5 * mean**0.5).all()
    assert {CounterDistance(1, 7, 7)(b, 0) for b in range(20)} == {7}


@pytest.mark.parametrize(("low", "high"), [(5, 4), (-1, 3)])
def test_a_wrong_range_of_distances_names_the_key(low: int, high: int) -> None:
    with pytest.raises(ValueError, match=r"rollout\.sink_distance"):
        CounterDistance(0, low, high)


def test_recorded_tables_are_cut_by_block() -> None:
    table = draw(0, 2, 16, 12, 4, 4)
    for block in range(8):
        clip, b = divmod(block, 4)
        expected = table[clip : clip + 1, :, 3 * b : 3 * b + 3]
        assert torch.equal(TableNoise(table).block(block, (1, 16, 3, 4, 4)), expected)
    rows = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert [TableDistance(rows)(b, s) for b in range(4) for s in range(2)] == list(range(1, 9))
