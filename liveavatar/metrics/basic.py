"""Meters that need no weights: quality, drift and motion."""

from __future__ import annotations

import numpy as np
import torch

from liveavatar.metrics import picture
from liveavatar.metrics.about import records, skipped
from liveavatar.metrics.flow import optical_flow, strongest
from liveavatar.metrics.series import Mean, Windows, slope, start_end
from liveavatar.metrics.suite import Piece


class QualityMeter:
    """Sharpness, contrast and light of the pictures, on average."""

    abouts = records(
        ("quality/sharpness", "variance of the Laplacian of luma, mean over frames", "grey levels squared, from 0", "none"),
        ("quality/contrast", "standard deviation of luma over the picture, mean over frames", "grey levels, 0 to 127.5", "none"),
        ("quality/luma", "luma (BT.709), mean over the picture and over frames", "grey levels, 0 to 255", "none"),
    )  # fmt: skip

    def __init__(self) -> None:
        self._means = {about.name: Mean() for about in self.abouts}

    def see(self, piece: Piece) -> None:
        self._means["quality/sharpness"].add(piece.sharpness)
        self._means["quality/contrast"].add(piece.contrast)
        self._means["quality/luma"].add(piece.luma)

    def values(self) -> dict[str, float | str]:
        return {name: mean.value for name, mean in self._means.items()}


DRIFTING = ("luma", "a", "b", "chroma", "sharpness", "contrast")


class DriftMeter:
    """How light, colour, sharpness and contrast change from the start of a stream to its end.

    `every` picks the rows and columns from which colours are read.
    """

    abouts = (
        *records(
            *(
                row
                for name in DRIFTING
                for row in (
                    (f"drift/{name}", f"{name}: mean of the last 15 % minus mean of the first 15 %", "its own units, signed; 0 is steady", "none"),
                    (f"drift/{name}_per_min", f"{name}: least-squares slope over windows", "its own units a minute, signed; 0 is steady", "none"),
                    (f"drift/{name}_per_min_error", f"{name}: standard error of that slope, for windows that err independently", "its own units a minute", "none"),
                )
            )
        ),
        *records(("drift/colour", "distance in CIELAB (1976) between the mean colours of first and last 15 %", "ΔE, from 0", "lower")),
    )  # fmt: skip

    def __init__(self, every: int = 4) -> None:
        self.every = max(1, every)
        self._windows = {name: Windows() for name in DRIFTING}
        self._lightness = Windows()
        self._fps = 25.0

    def see(self, piece: Piece) -> None:
        self._fps = piece.fps
        colours = picture.lab(piece.frames[:, :: self.every, :: self.every])
        means = colours.reshape(len(colours), -1, 3).mean(1, dtype=np.float64)
        chroma = np.hypot(colours[..., 1], colours[..., 2]).reshape(len(colours), -1).mean(1)
        self._lightness.add(means[:, 0])
        found = {"luma": piece.luma, "a": means[:, 1], "b": means[:, 2], "chroma": chroma}
        found |= {"sharpness": piece.sharpness, "contrast": piece.contrast}
        for name, values in found.items():
            self._windows[name].add(values)

    def values(self) -> dict[str, float | str]:
        found: dict[str, float | str] = {}
        ends = {}
        for name, windows in self._windows.items():
            minutes, means = windows.series(self._fps)
            if len(means) < 2:
                return skipped(f"shorter than two windows of {windows.frames} frames", self.abouts)
            ends[name] = found[f"drift/{name}"] = start_end(means)
            found[f"drift/{name}_per_min"], found[f"drift/{name}_per_min_error"] = slope(minutes, means)
        lightness = start_end(self._lightness.series(self._fps)[1])
        found["drift/colour"] = float(np.linalg.norm([lightness, ends["a"], ends["b"]]))
        return found


STILL = 0.05
"""Mean difference in grey levels below which two frames are the same picture."""


class MotionMeter:
    """Steadiness told beside motion: a frozen picture is perfectly steady.

    `pairs_per_s` is how often the optical flow is sought; a pair counts as dynamic as in VBench, but by our own flow.
    """

    abouts = records(
        ("motion/steadiness", "(255 - mean absolute difference of neighbouring frames) / 255, VBench's temporal flickering; 1 for a still: read it beside motion/flow", "0 to 1", "none"),
        ("motion/flow", "mean length of the optical flow between neighbouring frames, as a share of the shorter side", "% of the shorter side a frame", "none"),
        ("motion/flow_top", "mean length of the longest 5 % of the flow", "% of the shorter side a frame", "none"),
        ("motion/dynamic_share", "pairs whose longest 5 % of flow, at 8 pairs of frames a second, exceed 6 pixels in 256", "0 to 1", "none"),
        ("motion/still_share", "neighbouring frames that differ by less than 0.05 grey levels", "0 to 1", "lower"),
        ("motion/jump_share", "steps between frames more than twice as large as those before and after (and above 1 grey level): cuts, dropped frames", "0 to 1", "lower"),
    )  # fmt: skip

    def __init__(self, pairs_per_s: float = 8.0) -> None:
        if pairs_per_s <= 0:
            raise ValueError(f"metrics.meters.motion.pairs_per_s={pairs_per_s} must be above 0: write 8")
        self.pairs_per_s = pairs_per_s
        self._last: torch.Tensor | None = None
        self._sampled: torch.Tensor | None = None
        self._steps = np.zeros(0)
        self._means = {name: Mean() for name in ("steps", "still", "jump", "flow", "top", "dynamic")}

    def see(self, piece: Piece) -> None:
        frames = piece.grey if self._last is None else torch.cat([self._last[None], piece.grey])
        self._last = piece.grey[-1].clone()
        steps = (frames[1:] - frames[:-1]).abs().mean((1, 2)).double().numpy()
        self._means["steps"].add(steps)
        self._means["still"].add((steps < STILL).astype(float))
        around = np.concatenate([self._steps, steps])
        middle = around[1:-1]
        self._means["jump"].add(((middle > 1) & (middle > 2 * np.maximum(around[:-2], around[2:]))).astype(float))
        self._steps = around[-2:]
        self._flow(piece)

    def _flow(self, piece: Piece) -> None:
        """Flow between frames at 8 a second (for the dynamic share), told per frame of the video."""
        apart = max(1, round(piece.fps / self.pairs_per_s))
        chosen = piece.grey[(-piece.start) % apart :: apart]
        if self._sampled is not None:
            chosen = torch.cat([self._sampled[None], chosen])
        if not len(chosen):
            return
        self._sampled = chosen[-1].clone()
        if len(chosen) < 2:
            return
        flow, shorter = optical_flow(chosen[:-1], chosen[1:]), min(chosen.shape[1:])
        top = strongest(flow).double().numpy()
        self._means["flow"].add(100 * flow.norm(dim=1).mean((1, 2)).double().numpy() / shorter / apart)
        self._means["top"].add(100 * top / shorter / apart)
        self._means["dynamic"].add((top > 6 * shorter / 256).astype(float))

    def values(self) -> dict[str, float | str]:
        if not self._means["steps"].count:
            return skipped("a single frame has no motion", self.abouts)
        means = {name: mean.value for name, mean in self._means.items()}
        return {
            "motion/steadiness": (255 - means["steps"]) / 255,
            "motion/flow": means["flow"],
            "motion/flow_top": means["top"],
            "motion/dynamic_share": means["dynamic"],
            "motion/still_share": means["still"],
            "motion/jump_share": means["jump"],
        }
