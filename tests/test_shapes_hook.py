"""Shapes and types written in annotations are checked while the tests run."""

import pytest
import torch
from jaxtyping import TypeCheckError

from liveavatar.models.dit.context import tokens
from liveavatar.models.dit.state import SinkInput
from liveavatar.ops.attention import attend
from liveavatar.ops.rope import grid_rotations
from liveavatar.sampling.noise import TableNoise


def test_a_wrong_shape_is_caught_where_it_enters() -> None:
    q, k = torch.zeros(1, 4, 2, 6), torch.zeros(1, 5, 2, 6)
    attend(q, k, k)
    with pytest.raises(TypeCheckError, match="attend"):
        attend(q, k, torch.zeros(1, 6, 2, 6))  # as many values as keys
    with pytest.raises(TypeCheckError, match="tokens"):
        tokens(torch.zeros(1, 2, 3, 4))
    with pytest.raises(TypeCheckError, match="SinkInput"):
        SinkInput(torch.zeros(1, 16, 2, 4, 4), torch.zeros(1, 16, 19, 4, 4), torch.zeros(1, 3, 8))
    with pytest.raises(TypeCheckError, match="TableNoise"):
        TableNoise(torch.zeros(16, 12, 4, 4))


def test_a_wrong_type_is_caught_and_a_whole_number_is_a_float() -> None:
    grid_rotations([-1], range(2), [0.5, 1.5], 6)
    with pytest.raises(TypeCheckError, match="grid_rotations"):
        grid_rotations(["one"], range(2), range(2), 6)
