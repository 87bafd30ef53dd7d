"""Is the embedded model faster than real time on this machine, and where does a block's time go?

    python -m experiments.realtime.run --out experiments/realtime
    python -m experiments.realtime.run --against ../before --repeats 3 --out experiments/realtime

A row is a way to run the same request (with the sinks and meters of the command, and without any) on a checkout: this
one, and with `--against` another beside it. Each run has a process of its own; rows take turns, in an order that
changes. The voice is the demo's, again and again, `--seconds` of it; a short stream in the same process comes first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.tables import write
from liveavatar.tracking import stamp

HERE = Path(__file__).resolve().parents[2]
BARE = ["sink=none", "metrics=none", "profile.memory=false", "profile.probe=false"]
WAYS: dict[str, list[str]] = {"as the command": [], "no sinks, no meters": BARE}
COLUMNS = (
    *("rtf", "rtf_least", "rtf_most", "rtf_all", "open_s", "first_frames_s", "block_s", "denoise_s", "speech_s"),
    *("decode_s", "video_s", "metrics_s", "journal_s", "memory_s", "process_s", "others_share", "repeats"),
)


def busy() -> float:
    """Seconds that all processors have worked since the machine was started (Linux; else nan)."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return float("nan")
    return sum(int(word) for word in stat.read_text().split()[1:4]) / os.sysconf("SC_CLK_TCK")


def measure(checkout: Path, words: list[str], seconds: float) -> dict[str, Any]:
    """One run in a process of its own; `others_share` is what other processes took of the machine meanwhile."""
    worker = HERE / "experiments" / "realtime" / "worker.py"
    job = json.dumps({"seconds": seconds, "words": words})
    before, own, clock = busy(), sum(os.times()[2:4]), os.times()[4]
    done = subprocess.run(
        [sys.executable, str(worker), job],
        env=os.environ | {"PYTHONPATH": str(checkout)},
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the run on {checkout} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if Path(found["checkout"]).resolve() != checkout.resolve():
        raise RuntimeError(f"asked for {checkout}, and {found['checkout']} was imported")
    mine, elapsed = sum(os.times()[2:4]) - own, os.times()[4] - clock
    found["others_share"] = max(0.0, busy() - before - mine) / (elapsed * (os.cpu_count() or 1))
    return found


def row(name: str, way: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the repeats of a row."""
    told: dict[str, Any] = {"checkout": name, "way": way}
    ratios = [run["rtf"] for run in runs]
    medians = {key: statistics.median(run.get(key, 0.0) for run in runs) for key in COLUMNS}
    medians |= {"rtf_least": min(ratios), "rtf_most": max(ratios)}
    told |= {key: round(value, 4) for key, value in medians.items()}
    return told | {"repeats": len(runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout, measured beside this one as `before`")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--out", type=Path)
    given, words = parser.parse_known_args()
    checkouts = {"this": HERE} | ({"before": given.against.resolve()} if given.against else {})
    members = [(name, way) for name in checkouts for way in given.ways]
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {member: [] for member in members}
    order = random.Random(0)
    for repeat in range(given.repeats):
        for name, way in order.sample(members, len(members)):
            found = measure(checkouts[name], [*WAYS[way], *words], given.seconds)
            runs[name, way].append(found)
            told = f"rtf {found['rtf']:.3f}, others took {found['others_share']:.0%}"
            print(f"{repeat + 1}: {name}, {way}: {told}", flush=True)
            print(json.dumps(found), file=sys.stderr, flush=True)
    rows = [row(name, way, found) for (name, way), found in runs.items()]
    threads = next((int(word.partition("=")[2]) for word in words if word.startswith("fabric.threads=")), 2)
    about = stamp("cpu", threads, 1) | {"seconds": given.seconds, "words": words}
    if given.out:
        print(write(given.out, "realtime", rows, about))
    else:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
