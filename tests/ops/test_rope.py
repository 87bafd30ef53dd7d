"""Rotary positions: what attention may depend on, and what a stream of any length needs."""

import math

import pytest
import torch

from liveavatar.ops.rope import axis_pairs, coarse_positions, grid_rotations, rotate
from tests.scene import draw

HEAD = 20


def turned(x: torch.Tensor, frames: list[int], rows: list[int], columns: list[int]) -> torch.Tensor:
    return rotate(x, grid_rotations(frames, rows, columns, HEAD))


@pytest.mark.parametrize(
    ("head_dim", "pairs"), [(128, (22, 21, 21)), (64, (12, 10, 10)), (16, (4, 2, 2)), (4, (2, 0, 0)), (2, (1, 0, 0))]
)
def test_pairs_are_divided_frame_first(head_dim: int, pairs: tuple[int, int, int]) -> None:
    assert axis_pairs(head_dim) == pairs
    assert sum(pairs) == head_dim // 2
    assert grid_rotations([0, 1], [0], range(3), head_dim).shape == (6, head_dim // 2)


def test_a_head_of_odd_width_is_refused_with_the_key() -> None:
    with pytest.raises(ValueError, match=r"15 channels.*model\.dit\.dim"):
        axis_pairs(15)


def test_angles_are_position_times_frequency_axis_by_axis() -> None:
    frames, rows, columns = [3, -2], [1, 5, 7], [0, 4]
    by_frame, by_row, by_column = axis_pairs(HEAD)
    table = grid_rotations(frames, rows, columns, HEAD).view(2, 3, 2, HEAD // 2)
    for i, frame in enumerate(frames):
        for j, row in enumerate(rows):
            for k, column in enumerate(columns):
                angles = [frame * 10_000 ** (-m / by_frame) for m in range(by_frame)]
                angles += [row * 10_000 ** (-m / by_row) for m in range(by_row)]
                angles += [column * 10_000 ** (-m / by_column) for m in range(by_column)]
                expected = torch.tensor([complex(math.cos(a), math.sin(a)) for a in angles])
                torch.testing.assert_close(table[i, j, k], expected, rtol=0, atol=1e-6)


def test_scores_depend_on_differences_of_positions_only() -> None:
    q, k = draw(0, 1, 8, 3, HEAD), draw(1, 1, 8, 3, HEAD)

    def scores(frame: int, row: int, column: int) -> torch.Tensor:
        near = turned(q, [frame, frame + 1], [row, row + 1], [column, column + 1])
        far = turned(k, [frame - 4, frame + 9], [row + 3, row + 4], [column, column + 2])
        return torch.einsum("bqhc,bkhc->bhqk", near, far)

    here = scores(0, 0, 0)
    for shift in ((7, 0, 0), (0, 5, 0), (0, 0, 11), (100_000, 3, 2), (-50, -2, -9)):
        torch.testing.assert_close(scores(*shift), here, rtol=0, atol=2e-5)
    moved = torch.einsum("bqhc,bkhc->bhqk", turned(q, [0, 1], [0, 1], [0, 1]), turned(k, [0, 13], [3, 4], [0, 2]))
    assert (moved - here).abs().max() > 0.1  # another distance is another score


def test_length_is_kept_and_negative_positions_are_conjugates() -> None:
    x = draw(2, 2, 6, 2, HEAD)
    y = turned(x, [-19], [3, 900], [0, 1, 2])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)
    future, past = grid_rotations([19], [4], [2], HEAD), grid_rotations([-19], [-4], [-2], HEAD)
    assert torch.equal(past, future.conj())


def test_positions_of_ten_million_keep_their_accuracy() -> None:
    frame = 10_000_000
    table = grid_rotations([frame, frame + 1], [0], [0], 128)
    frequency = 10_000.0 ** -(torch.arange(22, dtype=torch.float64) / 22)
    step = torch.polar(torch.ones_like(frequency), frequency).to(torch.complex64)
    torch.testing.assert_close(table[1, :22] * table[0, :22].conj(), step, rtol=0, atol=1e-6)


def test_rotation_is_written_out_pair_by_pair_and_keeps_the_dtype() -> None:
    x = draw(3, 1, 2, 1, HEAD)
    table = grid_rotations([5, 6], [2], [1], HEAD)
    y = rotate(x, table)
    for token in range(2):
        for pair in range(HEAD // 2):
            a, b = x[0, token, 0, 2 * pair : 2 * pair + 2].tolist()
            expected = complex(a, b) * complex(table[token, pair])
            assert abs(complex(*y[0, token, 0, 2 * pair : 2 * pair + 2].tolist()) - expected) < 1e-6
    assert torch.equal(rotate(x.bfloat16(), table), rotate(x.bfloat16().float(), table).bfloat16())


def test_coarse_positions_are_spread_and_truncated() -> None:
    assert coarse_positions(24, 12) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 23]
    assert coarse_positions(9, 4) == [0, 2, 5, 8]
    assert coarse_positions(5, 1) == [0]
    assert coarse_positions(3, 0) == []


def test_coarse_positions_are_those_of_an_even_spread() -> None:
    for h in range(8, 600):
        for coarse in (h // 4, h // 8):
            spread = torch.linspace(0, h // 2 - 1, coarse, dtype=torch.float64)
            assert coarse_positions(h // 2, coarse) == [float(int(p)) for p in spread]
