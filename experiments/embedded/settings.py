"""The same people with other sampling settings: steps, rollouts, and what the caches hold. For `--part settings`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from experiments.clean_cache.run import CleanCaches
from experiments.embedded.cases import Case, Frames, Model, cases
from liveavatar.models.dit.cache import RingCache, Scratch, StreamCaches, StreamView

Row = dict[str, str | float]
Score = Callable[[str, Sequence[Case], Callable[[Case], Frames]], Row]


class _Blind(Scratch):
    """Attention's room without the sink's tokens at its front."""

    def assemble(
        self, view: StreamView, layer: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().assemble(view, layer, k, v)
        sink = view.sink.k.shape[2]
        return keys[:, sink:], values[:, sink:]


class NoSink(StreamCaches):
    """Blocks see earlier blocks of their step, and neither the portrait nor the first motion."""

    def _rooms(self, like: torch.Tensor, origin: int) -> tuple[list[RingCache], Scratch]:
        return [RingCache(self.shape, like, origin) for _ in self.steps], _Blind(self.shape, like)


SETTINGS: dict[str, tuple[list[str], type[StreamCaches] | None]] = {
    "1 step": (["sampler.steps=1"], None),
    "2 steps": (["sampler.steps=2"], None),
    "3 steps": (["sampler.steps=3"], None),
    "4 steps": ([], None),
    "8 steps": (["sampler.steps=8"], None),
    "clean cache": ([], CleanCaches),
    "no sink": ([], NoSink),
    "sink 100 frames away": (["rollout.sink_distance=[100,100]"], None),
    "ring of 6 latents": (["rollout.cache_frames=6"], None),
    "clips decoded": (["rollout=clipwise"], None),
}
"""What is asked of the command, and which caches stand in for its own. All take 4 steps where nothing else is said."""

PANELS = {
    "lip_r": "lips against the truth, r",
    "psnr": "PSNR, dB",
    "colour_de": "colours off, ΔE (largest)",
    "cpu_s_per_video_s": "processor s per s of video",
}


def settings(weights: list[str], folder: Path, count: int, seconds: float, score: Score) -> list[Row]:
    """A row for each setting; `score(label, people, make)` measures the videos that `make` draws."""
    people, rows = cases(folder, count, seconds), []
    for label, (given, kind) in SETTINGS.items():
        model = Model([*weights, *given])
        if kind is not None:
            model.run.session.caches = kind
        spent = []

        def draw(case: Case, model: Model = model, spent: list[float] = spent) -> Frames:
            began = time.process_time()
            made = model(case.request(case.clip.seed))
            spent.append(time.process_time() - began)
            return made

        row = score(label, people, draw)
        rows.append(row | {"cpu_s_per_video_s": sum(spent) / (count * seconds)})
        model.close()
    return rows


def figure(path: Path, rows: Sequence[Row]) -> None:
    """Bars of what the settings change."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(11, 3.6), layout="constrained")
    labels = [str(row["what"]) for row in rows]
    for number, (panel, (key, title)) in enumerate(
        zip(drawn.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True)
    ):
        colours = ["#4477aa" if label.endswith(("step", "steps")) else "#ee6677" for label in labels]
        panel.barh(labels, [float(row[key]) for row in rows], color=colours)
        panel.set_title(title, fontsize=10, loc="left")
        panel.grid(axis="x", color="#d9dee5", lw=0.6)
        panel.set_axisbelow(True)
        if not number:
            panel.invert_yaxis()
    drawn.savefig(path, dpi=130)
