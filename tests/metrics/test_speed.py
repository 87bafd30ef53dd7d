"""Speed: the arithmetic on made-up runs, and the meter that collects it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from liveavatar.metrics.speed import SpeedMeter, speed_metrics
from liveavatar.types import StreamInfo, VideoChunk


def test_numbers_of_a_made_up_run() -> None:
    found = speed_metrics([9, 12, 12, 12], [2.0, 0.4, 0.5, 0.9], [1.0, 0.1, 0.1, 0.1], first_s=3.5, total_s=6.0)
    assert found["speed/fps_e2e"] == 45 / 6
    assert found["speed/fps_denoise"] == pytest.approx(45 / 3.8)
    assert found["speed/ttff_s"] == 3.5
    assert found["speed/rtf"] == pytest.approx(6.0 / (45 / 25))
    assert found["speed/piece_s_cold"] == 3.0
    assert found["speed/piece_s_warm"] == pytest.approx(0.6)  # the median of 0.5, 0.6 and 1.0
    assert found["speed/denoise_s"] == pytest.approx(3.8)
    assert found["speed/decode_s"] == pytest.approx(1.3)


def test_a_run_without_a_frame_claims_nothing_and_one_piece_has_no_warm_time() -> None:
    assert speed_metrics([], [], [], 0.0, 1.0) == {}
    assert "speed/piece_s_warm" not in speed_metrics([9], [1.0], [1.0], 2.0, 2.0)


def test_the_meter_times_pieces_as_they_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 101.0, 104.0, 105.0])
    monkeypatch.setattr("liveavatar.metrics.speed.time.perf_counter", lambda: next(now))
    meter = SpeedMeter()
    meter.begin()
    meter.open(StreamInfo(16, 16, 25, 0, None))
    for index in range(2):
        timings = {"denoise": 0.5, "decode": 0.25, "wall": 0.8}
        silence = np.zeros(0, np.float32)
        meter.write(VideoChunk(index, 12 * index, torch.zeros(12, 3, 2, 2), silence, 0, timings=timings))
    meter.close()
    found = meter.values()
    assert found["speed/ttff_s"] == 3.0
    assert found["speed/total_s"] == 4.0
    assert found["speed/fps_e2e"] == 6.0
    assert found["speed/piece_s_warm"] == 0.75
