"""What do the meters of a run cost?

    python -m experiments.meters.run --out experiments/meters

A stream of model=tiny with its embedded weights; each piece of video is shown, as it comes, to a fresh suite of every
`metrics=…` and of each meter alone, one after another in an order that changes from piece to piece. So whatever else
the machine does falls on all of them. Process seconds are compared. Photographed faces are no matter of this model:
the suites that look for faces are shown a photograph that moves, in the size of the piece, so that all their nets work.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.tables import save
from liveavatar.assemble import assemble
from liveavatar.config import asset, compose, make
from liveavatar.metrics.suite import Piece, Suite
from liveavatar.tracking import stamp

SUITES = ("basic", "toon", "faces")
PHOTO = ("identity", "portrait", "brisque")


def suites() -> dict[str, Suite]:
    """Every suite of conf/metrics that needs no weights of the user, and each meter of theirs alone."""
    found: dict[str, Suite] = {}
    for name in SUITES:
        node = compose("evaluate", ["video=none", f"metrics={name}"]).metrics
        found[name] = make(node, "metrics")
        for meter, alone in make(node, "metrics").meters.items():
            found.setdefault(f"meter {meter}", Suite({meter: alone}))
    return found


def measure(seconds: float, turns: int) -> list[dict[str, float | str]]:
    """Process seconds of each piece: of making it, and of showing it to each suite."""
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as folder:
        words = [f"output.dir={folder}", f"request.max_seconds={seconds}", "fabric.threads=1", "fabric.accelerator=cpu"]
        with assemble(compose("infer", [*words, "metrics=none", "profile.memory=false"])) as run:
            for turn in range(turns):
                measured, at = suites(), time.process_time()
                for chunk in run.session.chunks(run.session.prepare(run.request)):
                    row: dict[str, float | str] = {"turn": turn, "piece": chunk.index, "frames": len(chunk.frames)}
                    row["making"] = time.process_time() - at
                    names = list(measured)
                    for place in range(len(names)):
                        name = names[(place + chunk.index) % len(names)]
                        piece = Piece(chunk.pixels().numpy(), chunk.audio, chunk.audio_rate, chunk.start, chunk.fps)
                        if name == "faces" or name.removeprefix("meter ") in PHOTO:
                            piece.frames = photographs(chunk.start, *piece.frames.shape[:3])
                        began = time.process_time()
                        measured[name].see(piece)
                        row[name] = time.process_time() - began
                    rows.append(row)
                    at = time.process_time()
                failed = {name: suite.failures for name, suite in measured.items() if suite.failures}
                assert not failed, failed
    return rows


def photographs(start: int, count: int, height: int, width: int) -> np.ndarray:
    with Image.open(asset("fashion_blogger.jpg")) as picture:
        still = np.asarray(picture.convert("RGB").resize((width, height)))
    return np.stack([np.roll(still, (start + number) % 9, 1) for number in range(count)])


def table(rows: list[dict[str, float | str]]) -> str:
    """Shares of the time that making the video takes; the first piece of each turn pays for what happens once."""
    warm = [row for row in rows if row["piece"]]
    lines = [
        "| shown to | process ms a frame | share of making the video | quartiles over pieces |",
        "| --- | ---: | ---: | --- |",
    ]
    frames = sum(float(row["frames"]) for row in warm)
    making = sum(float(row["making"]) for row in warm)
    lines.append(f"| nobody: making the video | {1000 * making / frames:.2f} | 1 | |")
    for name in [key for key in rows[0] if key not in ("turn", "piece", "frames", "making")]:
        spent = sum(float(row[name]) for row in warm)
        each = [float(row[name]) / float(row["making"]) for row in warm]
        low, _, high = statistics.quantiles(each, n=4)
        label = f"`metrics={name}`" if name in SUITES else name
        shares = f"{100 * spent / making:.1f} % | {100 * low:.1f} to {100 * high:.1f} %"
        lines.append(f"| {label} | {1000 * spent / frames:.2f} | {shares} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for results.csv, table.md and stamp.json")
    parser.add_argument("--turns", type=int, default=3, help="streams")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each")
    given = parser.parse_args()
    rows = measure(given.seconds, given.turns)
    print(table(rows))
    if given.out:
        save(given.out, rows, stamp("cpu", 1, 1), digits=".5f")
        (given.out / "table.md").write_text(table(rows) + "\n")


if __name__ == "__main__":
    main()
