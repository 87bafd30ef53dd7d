"""Attention against its definition."""

import pytest
import torch

from liveavatar.ops.attention import attend
from tests.scene import draw


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_is_the_softmax_of_scaled_scores(heads: int) -> None:
    q, k, v = draw(0, 2, 5, heads, 6), draw(1, 2, 9, heads, 6), draw(2, 2, 9, heads, 6)
    scores = torch.einsum("bqhc,bkhc->bhqk", q.double(), k.double()) / 6**0.5
    expected = torch.einsum("bhqk,bkhc->bqhc", scores.softmax(-1), v.double()).float()
    torch.testing.assert_close(attend(q, k, v), expected, rtol=1e-5, atol=1e-6)


def test_the_order_of_keys_does_not_matter_but_their_pairing_does() -> None:
    q, k, v = draw(0, 1, 4, 2, 6), draw(1, 1, 7, 2, 6), draw(2, 1, 7, 2, 6)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(attend(q, k[:, order], v[:, order]), attend(q, k, v), rtol=1e-5, atol=1e-6)
    assert (attend(q, k[:, order], v) - attend(q, k, v)).abs().max() > 0.1
