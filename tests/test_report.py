"""Runs read back: what differs, who is on the front, what is broken, and a page that needs nothing else."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from liveavatar.report import gather, report
from liveavatar.report.figures import titled, worth
from liveavatar.report.front import pareto
from liveavatar.report.gather import direction


def make_run(folder: Path, strategy: str, steps: int, **metrics: Any) -> Path:
    """A run directory as a run leaves it."""
    folder.mkdir(parents=True)
    kind = "".join(word.title() for word in strategy.split("_"))
    config = {
        "seed": 0,
        "sampler": {"steps": steps},
        "strategy": {"_target_": f"liveavatar.strategies.x.{kind}"},
        "output": {"dir": str(folder)},
        "sink": {"path": f"{folder}/avatar.mp4"},
    }
    if strategy == "fsdp_stream":
        config["strategy"]["slots"] = 2
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    found = {
        "run/finished": True, "run/cpu": "a CPU", "run/cores": 2, "run/threads": 1, "run/torch": "2.12",
        "weights": "random", "model": "micro", "strategy": strategy,
        "speed/fps_e2e": 4.0 / steps, "memory/run/allocated": 20e6, "traffic/host_bytes_per_block": 1e6,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(found | metrics))
    lines = [
        {"chunk/index": i, "chunk/frame": 12 * i, "picture/luma": 0.5 + 0.02 * i * steps, "picture/contrast": 0.2,
         "speed/fps": 5.0 / steps}
        for i in range(6)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Six whole runs and five broken ones."""
    root = tmp_path / "sweep"
    for steps in (1, 2, 4):
        make_run(root / f"whole-{steps}", "single_device", steps, **{"quality/psnr_db": 20.0 + steps})
        allocated = {"memory/run/allocated": 8e6, "quality/psnr_db": 20.0 + steps, "speed/fps_e2e": 2.0 / steps}
        make_run(root / f"stream-{steps}", "fsdp_stream", steps, **allocated)
    (root / "sweep.json").write_text("[]")
    make_run(root / "unfinished", "single_device", 1, **{"run/finished": False})
    make_run(root / "failed", "single_device", 9, **{"run/finished": False, "run/error": "sampler.steps=9 is too many"})
    (make_run(root / "cut", "single_device", 1) / "metrics.json").write_text('{"run/fin')
    (make_run(root / "list", "single_device", 1) / "metrics.json").write_text("[1, 2]")
    (make_run(root / "under way", "single_device", 1) / "metrics.json").unlink()
    return root


def test_the_front_is_what_nobody_beats() -> None:
    assert pareto([(1, 1), (2, 2), (3, 0), (2, 2), (0, 3)]) == [False, True, True, True, True]
    assert pareto([(1, float("-inf")), (1, 2)]) == [False, True]
    assert pareto([]) == []


def test_directions_are_those_that_metrics_declare_or_their_names_say(runs: Path) -> None:
    for name, way in (("quality/psnr_db", "higher"), ("drift/luma_per_minute", "lower"), ("motion/flicker", "lower")):
        assert direction(name, ()) == way
    told = {"quality/psnr_db": {"direction": "none"}, "sync/lips": {"direction": "lower"}}
    for strategy, steps in (("whole", 1), ("whole", 2), ("whole", 4), ("stream", 1), ("stream", 2), ("stream", 4)):
        place = runs / f"{strategy}-{steps}"
        (place / "about.json").write_text(json.dumps(told))
        metrics = json.loads((place / "metrics.json").read_text())
        (place / "metrics.json").write_text(json.dumps(metrics | {"sync/lips": 1.0 / steps}))
    found = gather(runs)
    assert direction("quality/psnr_db", found.rows) == "none"
    assert direction("sync/lips", found.rows) == "lower"
    assert found.quality() == "sync/lips"  # a description is nothing to judge by
    assert titled("sync/lips", found.rows) == "sync/lips (lower is better)"
    assert titled("quality/psnr_db", found.rows) == "quality/psnr_db (a description)"
    assert len(worth(found.rows[0], "sync/lips", found.rows)) == 3
    assert len(worth(found.rows[0], "quality/psnr_db", found.rows)) == 2


def test_runs_go_by_what_differs_and_broken_ones_by_their_reason(runs: Path) -> None:
    found = gather(runs)
    assert {row.label for row in found.rows} == {
        f"steps={steps}, {name}" for steps in (1, 2, 4) for name in ("single_device", "fsdp_stream")
    }
    reasons = {
        "unfinished": "cut short", "failed": "sampler.steps=9 is too many", "cut": "cannot be read",
        "list": "holds no named values", "under way": "there is no metrics.json",
    }  # fmt: skip
    assert set(found.broken) == set(reasons)
    for name, words in reasons.items():
        assert words in found.broken[name]


def test_a_report_has_table_figures_and_one_page_that_needs_nothing_else(runs: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra figures)")
    page = report(runs)
    text = page.read_text()
    assert "sampler.steps=9 is too many" in text
    assert "(prefers-color-scheme: dark)" in text
    assert not re.findall(r'(?:src|href|srcset)=["\'](?!data:)', text)
    assert "http" not in text
    inside = re.findall(r"data:image/png;base64,([^\"]+)", text)
    assert len(inside) == 6
    for light, dark in zip(inside[1::2], inside[::2], strict=True):
        corners = [Image.open(io.BytesIO(base64.b64decode(d))).convert("L").getpixel((1, 1)) for d in (light, dark)]
        assert corners[0] > 200 > 60 > corners[1]
    for stem in ("front", "strategies", "drift"):
        image = Image.open(page.parent / f"{stem}.png").convert("RGB")
        assert image.width > 900
        assert len(image.getcolors(1 << 20) or []) > 50  # something was drawn
    with (page.parent / "report.csv").open() as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert set(rows) == {f"{kind}-{steps}" for kind in ("whole", "stream") for steps in (1, 2, 4)}
    assert rows["stream-4"]["config/sampler.steps"] == "4"
    assert float(rows["stream-4"]["quality/psnr_db"]) == 24.0
    assert all(row["on_front"] == "True" for row in rows.values())  # faster is worse here, and smaller slower
    markdown = (page.parent / "report.md").read_text()
    assert "a CPU, 2 cores" in markdown
    assert markdown.count("**steps=") == 6
    assert "- `under way`: it has not come to its end" in markdown


def test_who_is_beaten_is_not_on_the_front(runs: Path) -> None:
    make_run(runs / "worse", "single_device", 3, **{"speed/fps_e2e": 0.1, "quality/psnr_db": 1.0})
    report(runs)
    with (runs / "report" / "report.csv").open() as file:
        assert {row["run"] for row in csv.DictReader(file) if row["on_front"] == "False"} == {"worse"}
    gather(runs)  # a second time: the report's own folder is no run


def test_what_is_asked_in_vain_is_told(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"quality=quality/nope: no run has it; there are .*quality/psnr_db"):
        report(runs, quality="quality/nope")
    with pytest.raises(ValueError, match="is no folder"):
        gather(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no run"):
        gather(tmp_path / "empty")


def test_a_folder_of_broken_runs_is_reported_too(tmp_path: Path) -> None:
    make_run(tmp_path / "r" / "one", "single_device", 1, **{"run/finished": False})
    text = report(tmp_path / "r").read_text()
    assert "No run has come to its end." in text
    assert "cut short" in text


def test_the_command_loads_no_torch_and_says_where_the_page_is(runs: Path) -> None:
    code = (
        "import sys; sys.argv = ['report', *sys.argv[1:]]\n"
        "from liveavatar.report.__main__ import main\n"
        "main(); assert 'torch' not in sys.modules"
    )
    given = [sys.executable, "-c", code]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([*given, f"runs={runs}"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "6 runs, 5 left out" in done.stderr
    assert (runs / "report" / "report.html").is_file()
    done = subprocess.run([*given, f"runs={runs}/nowhere"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is no folder" in done.stderr
    assert "Traceback" not in done.stderr
