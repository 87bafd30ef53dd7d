"""Costs side by side: the members of a sweep in one process, a piece of video from each in turn.

Runs in processes of their own meet different moments of a machine. Here whatever else the machine does falls on all
members alike, so that the ratios of their process seconds hold.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from liveavatar.assemble import assemble
from liveavatar.config import compose

MS, RATIO, SPREAD = "paired/process_ms_per_frame", "paired/ratio", "paired/ratio_spread"


def side_by_side(folder: Path, turns: int = 2) -> dict[str, dict[str, float]]:
    """For each finished member below `folder`: process milliseconds a frame, and its ratio to the first member's.

    The ratio is the median over rounds, the spread half the distance of its quartiles. The first piece of each stream
    pays for what happens once and is left out.
    """
    members = {place.parent.name: json.loads(place.read_text()) for place in sorted(folder.glob("*/words.json"))}
    members = {name: words for name, words in members.items() if (folder / name / "avatar.mp4").exists()}
    spent: dict[str, list[float]] = {name: [] for name in members}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        runs = {}
        for name, words in members.items():
            given = [*words, f"output.dir={temporary}/{name}", "metrics=none", "profile.memory=false"]
            runs[name] = stack.enter_context(assemble(compose("infer", given)))
        for _ in range(turns):
            streams = {name: run.session.chunks(run.session.prepare(run.request)) for name, run in runs.items()}
            rounds: list[dict[str, float]] = []
            while True:
                order = list(streams)
                order = order[len(rounds) % len(order) :] + order[: len(rounds) % len(order)]
                found = {}
                for name in order:
                    began = time.process_time()
                    chunk = next(streams[name], None)
                    if chunk is not None:
                        found[name] = 1000 * (time.process_time() - began) / len(chunk.frames)
                if len(found) < len(streams):
                    break
                rounds.append(found)
            for row in rounds[1:]:
                for name, value in row.items():
                    spent[name].append(value)
    return {name: _told(values, spent[next(iter(spent))]) for name, values in spent.items()}


def _told(mine: list[float], first: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(mine, first, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {MS: statistics.mean(mine), RATIO: statistics.median(ratios), SPREAD: (high - low) / 2}
