"""Ring, sink and scratch: what a cell sees of the past, against a plain list of frames."""

import random

import pytest
import torch

from liveavatar.models.dit.cache import CacheShape, RingCache, SinkView, StreamCaches, StreamView
from liveavatar.ops.rope import grid_rotations, rotate
from tests.scene import draw

N, HEADS, CHANNELS = 2, 2, 6
LIKE = torch.empty(0)


def shape_of(frames: int, layers: int = 1, sink: int = 5) -> CacheShape:
    return CacheShape(layers, HEADS, CHANNELS, N, sink, frames)


def visible(origin: int, end: int, window: int, size: int) -> set[int]:
    """Frames that a block ending at `end` may see, by simply writing them one after another."""
    slots: dict[int, int] = {}
    for frame in range(origin, end):
        slots[frame % size] = frame
    return {frame for frame in slots.values() if window < 0 or frame >= end - window}


def test_spans_are_the_slots_of_the_visible_frames() -> None:
    chooser = random.Random(0)
    seen = set()
    for _ in range(3000):
        size = 3 * chooser.randint(1, 6)
        origin = 3 * chooser.choice([0, 1, 2, 7, 1000, 3_333_333])
        end = origin + 3 * chooser.randint(1, 15)
        window = chooser.choice([-1, *range(3, 25)])
        spans = RingCache(shape_of(size), LIKE.to("meta"), origin).spans(end, window)
        tokens = [token for span in spans for token in range(span.start, span.stop)]
        expected = {f % size * N + i for f in visible(origin, end, window, size) for i in range(N)}
        assert len(tokens) == len(set(tokens))
        assert set(tokens) == expected, (size, origin, end, window)
        seen.add((len(spans), window < 0, end - origin > size))
    assert len(seen) >= 5  # young and wrapped streams, windows in one piece and in two


@pytest.mark.parametrize(("origin", "window"), [(0, -1), (0, 6), (21, -1), (9_999_999, 4)])
def test_a_cell_sees_the_sink_and_the_last_frames_of_its_own_layer(origin: int, window: int) -> None:
    shape = shape_of(12, layers=2)
    caches = StreamCaches(shape, 2, LIKE, origin)
    sink_turns = grid_rotations([7], range(5), [0], CHANNELS)
    sink_kv = [[draw(50 + 2 * layer + i, 1, 5, HEADS, CHANNELS) for i in range(2)] for layer in range(2)]
    for layer in range(2):
        q = draw(60, 1, 5, HEADS, CHANNELS)
        turned = SinkView(caches.sink, sink_turns).exchange(layer, q, *sink_kv[layer])
        for given, plain in zip(turned[:2], (q, sink_kv[layer][0]), strict=True):
            assert torch.equal(given, rotate(plain, sink_turns))
        assert torch.equal(turned[2], sink_kv[layer][1])
    history: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
    later_turns = grid_rotations([99], range(5), [0], CHANNELS)
    for frame in range(origin, origin + 30, 3):
        turns = grid_rotations(range(frame, frame + 3), range(N), [0], CHANNELS)
        for layer in range(2):
            q, k, v = (draw(7 * frame + 2 * layer + i, 1, 3 * N, HEADS, CHANNELS) for i in range(3))
            view = StreamView(caches.rings[1], caches.sink, caches.scratch, frame, 3, turns, later_turns, window)
            q_out, keys, values = view.exchange(layer, q, k, v)
            for i in range(3):
                piece = slice(i * N, (i + 1) * N)
                history[layer, frame + i] = rotate(k, turns)[:, piece], v[:, piece]
            frames = visible(origin, frame + 3, window, 12)
            assert torch.equal(q_out, rotate(q, turns))
            assert keys.shape[1] == values.shape[1] == 5 + N * len(frames)
            assert torch.equal(keys[:, :5], rotate(sink_kv[layer][0], later_turns))
            assert torch.equal(values[:, :5], sink_kv[layer][1])
            pairs = set(zip(_rows(keys[:, 5:]), _rows(values[:, 5:]), strict=True))
            assert pairs == {pair for f in frames for pair in zip(*map(_rows, history[layer, f]), strict=True)}
    assert not caches.rings[0].k.any()  # the other step's ring is its own
    assert all(tensor.is_contiguous() for tensor in (keys, values))


def _rows(x: torch.Tensor) -> list[bytes]:
    """One hashable value a token."""
    return [row.contiguous().numpy().tobytes() for row in x[0]]


def test_caches_follow_the_dtype_and_are_counted_whole() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        caches = StreamCaches(shape_of(12, layers=3), 4, LIKE.to(dtype))
        tensors = [t for c in (*caches.rings, caches.sink, caches.scratch) for t in (c.k, c.v)]
        assert {t.dtype for t in tensors} == {dtype}
        tokens = 3 * 4 * 12 * N + 3 * 5 + (12 * N + 5)
        assert caches.nbytes == 2 * tokens * HEADS * CHANNELS * dtype.itemsize
