"""How much longer does a stream take while its memory is watched?

Runs the same stream of model=tiny in turns, without and with the profiler, in one process: one set of models, caches
made anew each time. Each turn is a pair whose order alternates, so that whatever else the machine does falls on both.
Process seconds are compared, which other processes disturb least. Blocks are timed after the first, which pays for what
happens once (most passes that are followed tensor by tensor among it); the whole stream is given beside them,
and `once`: the seconds that the watching adds before the second block, whatever the length.

    python -m experiments.profiler_overhead.run --out experiments/profiler_overhead
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from experiments.tables import save
from liveavatar.assemble import Run, assemble
from liveavatar.config import compose
from liveavatar.memory.attend import attending, encoding
from liveavatar.memory.profiler import MemoryProfiler, ProfileSettings
from liveavatar.tracking import stamp

SETTINGS = {
    "off": None,
    "default": ProfileSettings(),
    "every=1": ProfileSettings(every=1),
}


def stream(run: Run, settings: ProfileSettings | None) -> tuple[float, float]:
    """Process seconds of one stream, and of its blocks after the first, sum of all threads."""
    session = run.session
    with ExitStack() as stack:
        began = time.process_time()
        if settings is None:
            made = session.prepare(run.request)
        else:
            memory = MemoryProfiler(session.device, settings)
            memory.ledger.add(run.strategy.holdings)
            parts = session.parts
            with encoding(memory, {"text": parts.text, "speech": parts.speech, "vae": parts.codec}):
                made = session.prepare(run.request)
            stack.enter_context(attending(memory, parts.dit, made))
        marks = [time.process_time() for _ in session.chunks(made)]
    return time.process_time() - began, marks[-1] - marks[0]


def measure(run: Run, pairs: int) -> list[dict[str, Any]]:
    """Every setting beside `off`, turn by turn."""
    stream(run, None)  # warm
    rows = []
    for turn in range(pairs):
        for name, settings in SETTINGS.items():
            if name == "off":
                continue
            both = {}
            for watched in (False, True) if turn % 2 else (True, False):
                both[watched] = stream(run, settings if watched else None)
            rows.append(
                {
                    "setting": name,
                    "turn": turn,
                    "stream_off_s": both[False][0],
                    "stream_on_s": both[True][0],
                    "blocks_off_s": both[False][1],
                    "blocks_on_s": both[True][1],
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| profile | pairs | blocks after the first, on / off: median | quartiles | whole stream: median | once, s |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name in dict.fromkeys(row["setting"] for row in rows):
        mine = [row for row in rows if row["setting"] == name]
        blocks = sorted(row["blocks_on_s"] / row["blocks_off_s"] for row in mine)
        whole = [row["stream_on_s"] / row["stream_off_s"] for row in mine]
        once = [row["stream_on_s"] - row["stream_off_s"] - row["blocks_on_s"] + row["blocks_off_s"] for row in mine]
        low, _, high = statistics.quantiles(blocks, n=4) if len(blocks) > 1 else blocks * 3
        lines.append(
            f"| {name} | {len(mine)} | {statistics.median(blocks):.3f} | {low:.3f} to {high:.3f} | "
            f"{statistics.median(whole):.3f} | {statistics.median(once):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for results.csv, table.md and stamp.json")
    parser.add_argument("--pairs", type=int, default=9, help="turns of each setting")
    parser.add_argument("--seconds", type=float, default=2.4, help="length of the stream")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"output.dir={folder}", f"request.max_seconds={given.seconds}", "fabric.threads=1"]
        overrides += ["fabric.accelerator=cpu", "profile.figure=false"]
        with assemble(compose("infer", overrides)) as run:
            rows = measure(run, given.pairs)
    print(table(rows))
    if given.out:
        save(given.out, rows, stamp("cpu", 1, 1), digits=".4f")
        (given.out / "table.md").write_text(table(rows) + "\n")


if __name__ == "__main__":
    main()
