"""Runs of tokens, and the latent frames that they cover."""

from __future__ import annotations

import pytest
import torch

from liveavatar.models.dit.spread import Segment, chunks, segments


@pytest.mark.parametrize(("total", "parts"), [(3168, 5), (3168, 8), (75, 4), (3, 5), (96, 1)])
def test_runs_are_consecutive_and_nearly_equal(total: int, parts: int) -> None:
    runs = chunks(total, parts)
    assert [i for run in runs for i in range(run.start, run.stop)] == list(range(total))
    sizes = [run.stop - run.start for run in runs]
    assert len(sizes) == parts
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("frame_tokens", [1, 5, 8])
def test_segments_give_every_token_its_frame(parts: int, frame_tokens: int) -> None:
    frames = (torch.arange(3 * frame_tokens) // frame_tokens).float()
    for own in chunks(3 * frame_tokens, parts):
        found = segments(own, frame_tokens)
        assert len(found) <= 3
        mine, seen = frames[own].unsqueeze(0), []
        for part in found:
            runs = part.by_frame(mine)[0]
            assert [set(run.tolist()) for run in runs] == [{f} for f in range(part.frames.start, part.frames.stop)]
            seen.append(runs.flatten())
        assert torch.equal(torch.cat([torch.empty(0), *seen]), mine[0])


def test_a_whole_cell_is_one_segment() -> None:
    assert segments(slice(0, 3168), 1056) == [Segment(slice(0, 3), slice(0, 3168))]
    assert segments(slice(0, 792), 1056) == [Segment(slice(0, 1), slice(0, 792))]
    assert [part.frames for part in segments(slice(1000, 3000), 1056)] == [slice(0, 1), slice(1, 2), slice(2, 3)]
