"""What is in "21.48 GB after loading, 4.17 GB more at unshard: 25.65 GB, and the card has 24"?

Takes that table of four ranks apart with the planner: what each part of the model takes, which sums of parts come near
the published figures, and what every strategy needs on the same cards instead. Arithmetic alone: no torch, no weights.

    python -m experiments.unshard_report.run --out experiments/unshard_report
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from liveavatar.config import compose
from liveavatar.memory.given import GB
from liveavatar.plan import plan
from liveavatar.strategies.auto import ask_of

GIB = 2**30
RANKS, CARD = 4, 24.0
LOADED, UNSHARD, PEAK = 21.48, 4.17, 25.65
"""As published; the unit is written GB, and the second figure shows that GiB are meant."""

SISTER = 17.3
"""A second report of the same set-up: 17.3 after loading, and 21.47 once 4.17 have come on top."""

ASKED = ("model=s2v_14b", "topology=4x24gb", "request.size=704*384", "plan.hoist=false")
SHARD, ROOT, TEXT, SPEECH, VAE, RING, SINK = (
    "a quarter of the DiT",
    "outside the blocks, gathered",
    "umT5",
    "wav2vec2",
    "VAE",
    "caches of one step",
    "sink",
)
COLOURS: dict[str, str] = dict(
    zip(
        (SHARD, ROOT, TEXT, SPEECH, VAE, RING, SINK),
        ("#1f4e79", "#c1121f", "#e9c46a", "#b8a9c9", "#8ab17d", "#4f81bd", "#2a9d8f"),
        strict=True,
    )
)
GROUPS = {
    "weights at rest": (("weights", "ring"), "#1f4e79"),
    "gathered": (("gathered",), "#c1121f"),
    "encoders": (("text", "speech", "vae", "encoding"), "#e9c46a"),
    "caches and sink": (("caches", "sink", "second sink", "scratch", "prepared", "mail"), "#4f81bd"),
    "decoder": (("decoder state", "decoding"), "#8ab17d"),
    "activations": (("activations",), "#e76f51"),
}
"""Parts of the plan, as the figure adds them up."""


def outside() -> int:
    """Parameters of the DiT outside its blocks, which a wrapping of blocks alone leaves to the root unit."""
    units = ask_of(compose("plan", ASKED)).dit.units.items()
    return sum(sum(sizes) for name, sizes in units if not name.startswith("blocks."))


def parts() -> dict[str, int]:
    """Bytes on one of four ranks, in bfloat16, of what may have been there."""
    ask = ask_of(compose("plan", ASKED))
    return {
        SHARD: ask.dit.params * 2 // RANKS,
        ROOT: outside() * 2,
        TEXT: ask.text_params * 2,
        SPEECH: ask.speech_params * 2,
        VAE: ask.vae_params * 2,
        RING: ask.dit.layers * ask.row(ask.picture.ring_tokens),
        SINK: ask.dit.layers * ask.row(ask.picture.sink_tokens),
    }


def loaded() -> tuple[str, ...]:
    """What the words `after loading` stand for: a shard of the DiT, and the encoders whole on every rank."""
    return SHARD, TEXT, SPEECH, VAE


def near(goal: float, within: float = 0.06) -> list[tuple[tuple[str, ...], float]]:
    """Every sum of parts that comes near a published figure, read as GiB; nearest first."""
    sizes = parts()
    sums = [
        (names, sum(sizes[name] for name in names) / GIB)
        for count in range(1, len(sizes) + 1)
        for names in combinations(sizes, count)
    ]
    return sorted((pair for pair in sums if abs(pair[1] - goal) < within), key=lambda pair: abs(pair[1] - goal))


def told_plan() -> dict[str, Any]:
    """The planner's answer for the same four cards."""
    return plan(compose("plan", [word for word in ASKED if not word.startswith("plan.")]))


def needs() -> dict[str, dict[str, Any]]:
    """The best way of each strategy, as that plan tells it."""
    return told_plan()["strategies"]


def account() -> list[dict[str, str]]:
    """The table: parts, the two readings of the report, and what strategies need."""
    sizes = parts()
    rows = [_row("part", name, size) for name, size in sizes.items()]
    read = sum(sizes[name] for name in loaded())
    rows.append(_row("reading: as the words say", " + ".join(loaded()), read))
    rows.append(_row("reading: as the words say", "not accounted for", int(LOADED * GIB) - read))
    for goal in (LOADED, SISTER):
        rows += [_row(f"sums near {goal}", " + ".join(names), int(value * GIB)) for names, value in near(goal)]
    for name, row in needs().items():
        rows.append(_row("strategy: after loading", name, int(row["phases_gb"]["load"] * GB)))
        rows.append(_row("strategy: largest moment", name, max(row["tensor_bytes"])))
    return rows


def _row(kind: str, name: str, size: int) -> dict[str, str]:
    return {"kind": kind, "name": name, "bytes": str(size), "gib": f"{size / GIB:.3f}", "gb": f"{size / GB:.3f}"}


def table(told: Mapping[str, Mapping[str, Any]]) -> str:
    """What each strategy needs, as Markdown; GB, the margin for context and libraries included in the peak."""
    lines = ["| strategy | settings | after loading | largest moment | where | verdict |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, row in told.items():
        words = " ".join(w for w in row["command"].split() if w.startswith(("strategy.", "parallel.")))
        verdict = "fits" if row["fits"] else f"{row['excess_bytes'] / GB:.1f} GB too many"
        lines.append(
            f"| {name} | {f'`{words}`' if words else ''} | {row['phases_gb']['load']:.1f} | "
            f"{max(row['peak_gb']):.1f} | {row['where']} | {verdict} |"
        )
    return "\n".join(lines)


def draw(path: Path) -> None:
    """Published and accounted for above; what every strategy needs below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=[3, 5])
    _draw_report(above)
    _draw_needs(below, told_plan())
    figure.savefig(path, dpi=110)


def _draw_report(axes: Any) -> None:
    sizes = {name: size / GIB for name, size in parts().items()}
    nearest = near(LOADED)[0][0]
    rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]] = (
        ("published", [("after loading", LOADED, "#9aa5b1"), ("at unshard", UNSHARD, "#c1121f")]),
        (
            "as the words say",
            [(name, sizes[name], COLOURS[name]) for name in loaded()]
            + [
                ("not accounted for", LOADED - sum(sizes[name] for name in loaded()), "#eef1f4"),
                (ROOT, sizes[ROOT], COLOURS[ROOT]),
            ],
        ),
        ("nearest sum of parts", [(name, sizes[name], COLOURS[name]) for name in nearest]),
    )
    seen: set[str] = set()
    for y, (_, pieces) in enumerate(rows):
        left = 0.0
        for name, size, colour in pieces:
            label = None if y == 0 or name in seen else name
            seen.add(name)
            axes.barh(y, size, left=left, color=colour, edgecolor="white", label=label)
            if size > 1:
                dark = colour in ("#1f4e79", "#c1121f", "#4f81bd")
                axes.text(
                    left + size / 2, y, f"{size:.2f}", ha="center", va="center", color="white" if dark else "black"
                )
            left += size
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.axvline(CARD, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel("GiB on one of four ranks; dashed: the card's 24")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    axes.set_title("The report, and what can be told of it", loc="left", fontsize=11)


def _draw_needs(axes: Any, whole: Mapping[str, Any]) -> None:
    told, room = whole["strategies"], whole["budget_gb"] - whole["margin_gb"]
    axes.set_xlim(0, 90)
    for y, row in enumerate(told.values()):
        left = 0.0
        for label, (names, colour) in GROUPS.items():
            size = sum(row["parts"].get(name, 0) for name in names) / GB
            axes.barh(y, size, left=left, color=colour, edgecolor="white", label=label if y == 0 else None)
            left += size
        room_for = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.text(left + 0.8, y, f"{left:.1f}", va="center", fontsize=9, bbox=room_for)
    axes.set_yticks(range(len(told)), [f"{name} ({row['where']})" for name, row in told.items()])
    axes.invert_yaxis()
    axes.axvline(room, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel(
        f"GB of tensors on the fullest rank at its largest moment; dashed: {room:.1f} that such a card leaves"
    )
    axes.legend(loc="center right", frameon=False, fontsize=8)
    axes.set_title("What each strategy needs on four such cards", loc="left", fontsize=11)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/unshard_report"), help="folder of the results")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = account()
    with (given.out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(given.out / "figure.png")
    for row in rows:
        print(f"{row['kind']:28} {row['gib']:>7} GiB {row['gb']:>7} GB  {row['name']}")
    print(table(needs()))


if __name__ == "__main__":
    main()
