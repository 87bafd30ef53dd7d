"""Following tensors one by one: to the byte, views and earlier tensors for nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from liveavatar.memory.probe import TensorWatch

KB = 1024


def test_new_storages_count_while_they_live() -> None:
    with TensorWatch() as watch:
        a = torch.ones(256)
        b = a + 1
        assert watch.live == 2 * KB
        view = b[:10]
        del b
        assert watch.live == 2 * KB  # the view keeps it
        del view, a
        assert watch.live == 0
        assert watch.peak == 2 * KB
        watch.mark()
        assert watch.peak == 0


def test_what_was_there_before_counts_nothing() -> None:
    weight, x = torch.ones(64, 64), torch.ones(8, 64)
    with TensorWatch() as watch:
        y = F.linear(x, weight.view(64, 64))
        weight.add_(1)
        assert watch.live == y.nbytes == 8 * 64 * 4


def test_attention_counts_its_operands_and_no_table_of_scores() -> None:
    q = torch.randn(1, 4, 512, 32)
    with TensorWatch() as watch, torch.no_grad():
        F.scaled_dot_product_attention(q, q, q)
        assert q.nbytes <= watch.peak < 4 * q.nbytes  # scores would be 16 times as much


def test_storages_that_change_size_are_followed() -> None:
    """FSDP2 gives gathered weights back by shrinking their storage."""
    with TensorWatch() as watch:
        room = torch.empty(512)
        room.untyped_storage().resize_(0)
        assert watch.live == 0
        room.untyped_storage().resize_(4096)
        assert (watch.live, watch.peak) == (4096, 4096)
    elsewhere = torch.empty(4)
    elsewhere.untyped_storage().resize_(0)
    assert elsewhere.untyped_storage().nbytes() == 0


def test_numbers_are_the_same() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(33, 65), torch.randn(65, 65)
    plain = F.gelu(x @ w).softmax(-1)
    with TensorWatch():
        followed = F.gelu(x @ w).softmax(-1)
    assert torch.equal(plain, followed)
