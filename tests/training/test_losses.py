"""Losses on bare tensors."""

from __future__ import annotations

import pytest
import torch

from liveavatar.training.draws import DitSettings
from liveavatar.training.losses import tint_error


def test_a_tint_counts_and_details_do_not() -> None:
    wanted = torch.rand(2, 3, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    checks = (torch.arange(16)[:, None] + torch.arange(24)) % 2 - 0.5
    assert tint_error(wanted + checks, wanted, 8).item() == pytest.approx(0, abs=1e-12)
    assert tint_error(wanted + 0.1, wanted, 8).item() == pytest.approx(0.01, rel=1e-4)
    half = wanted.clone()
    half[:, 0, :, :8] += 0.3  # one channel of three, one half of the height
    assert tint_error(half, wanted, 8).item() == pytest.approx(0.09 / 6, rel=1e-4)


def test_pictures_smaller_than_a_square_have_one() -> None:
    wanted = torch.zeros(1, 3, 1, 4, 8)
    assert tint_error(wanted + 0.5, wanted, 16).item() == pytest.approx(0.25)


def test_a_tint_cannot_count_less_than_nothing() -> None:
    with pytest.raises(ValueError, match=r"dit\.tint=-1\.0 cannot be negative"):
        DitSettings(tint=-1.0)
