"""Sound by sample number: what is forgotten, taken back, put in and faded."""

from __future__ import annotations

import numpy as np

from liveavatar.live.tape import Tape


def test_a_tape_keeps_what_it_is_told_to_keep() -> None:
    tape, rng, everything = Tape(), np.random.default_rng(0), np.zeros(0, np.float32)
    for _ in range(300):
        piece = rng.standard_normal(int(rng.integers(0, 700))).astype(np.float32)
        tape.append(piece)
        everything = np.concatenate([everything, piece])
        tape.forget(tape.end - 4000)
    assert (tape.start, tape.end) == (len(everything) - 4000, len(everything))
    assert np.array_equal(tape.read(tape.start, tape.end), everything[-4000:])
    around = tape.read(tape.start - 10, tape.end + 10)
    assert not around[:10].any()
    assert not around[-10:].any()
    assert tape.nbytes <= 1 << 16  # room is used again


def test_the_future_can_be_taken_back_put_off_and_faded() -> None:
    tape = Tape()
    tape.append(np.arange(1, 101, dtype=np.float32))
    tape.put_in(50, 7)
    assert tape.end == 107
    assert not tape.read(50, 57).any()
    assert np.array_equal(tape.read(57, 107), np.arange(51, 101))
    tape.cut(60)
    assert np.array_equal(tape.read(56, 62), [0, 51, 52, 53, 0, 0])
    tape.silence(70)
    tape.silence(65)
    assert tape.end == 70
    tape.fade(10, 5)
    assert np.allclose(tape.read(9, 16), [10, 11, 9, 6.5, 3.5, 0, 0])
    assert not tape.read(16, 70).any()
    tape.fade(99, 5)
    tape.forget(1000)
    assert tape.start == tape.end == 70
