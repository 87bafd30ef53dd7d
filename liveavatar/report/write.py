"""The files of a report: report.csv, report.md, report.html and the figures beside them."""

from __future__ import annotations

import base64
import csv
import html
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liveavatar.report.front import pareto
from liveavatar.report.gather import FPS, Gathered, Row, gather

if TYPE_CHECKING:
    from liveavatar.report.figures import Picture

log = logging.getLogger(__name__)

ADVICE = "pip install 'liveavatar[figures]'"
SHOWN = {
    "speed/fps_e2e": "frames/s",
    "speed/ttff_s": "first frame, s",
    "traffic/host_bytes_per_block": "from host a block, MB",
    "traffic/received_bytes_per_block": "from ranks a block, MB",
}
STYLE = """
:root{color-scheme:light dark;--back:#fff;--ink:#1c2430;--soft:#5b6675;--line:#d9dee5;--row:#f5f7fa;--best:#e6f2ea}
@media(prefers-color-scheme:dark){:root{--back:#161b22;--ink:#e6e9ee;--soft:#9aa6b5;--line:#39424f;--row:#1d242d;
--best:#1e3328}}
body{background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1100px;
padding:0 1.2rem}
h1{font-size:1.5rem;margin:0 0 .2rem}h2{font-size:1.1rem;margin:2rem 0 .6rem}
p,figcaption{color:var(--soft);margin:.3rem 0}
figure{margin:0 0 1.6rem}img{width:100%;height:auto;display:block;border:1px solid var(--line);border-radius:6px}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:13px}
th,td{padding:.35rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left;white-space:normal;min-width:14rem}th{color:var(--soft);font-weight:600}
tr:nth-child(even) td{background:var(--row)}tr.best td{background:var(--best)}
td.why{text-align:left;white-space:normal}code{font-size:13px}
"""


def report(
    runs: str | Path, out: str | Path | None = None, quality: str | None = None, title: str | None = None
) -> Path:
    """Gather the runs below `runs` and write their report; returns the page's path.

    Raises ValueError where there is no run, or none has the metric `quality`.
    """
    found = gather(runs)
    measure = found.quality(quality)
    target = Path(out).expanduser() if out is not None else found.folder / "report"
    target.mkdir(parents=True, exist_ok=True)
    columns = _columns(found, measure)
    rows = table(found, measure)
    _write_csv(target / "report.csv", found, measure)
    (target / "report.md").write_text(_markdown(found, columns, rows), encoding="utf-8")
    pictures = _pictures(found, measure)
    for picture in pictures:
        (target / f"{picture.stem}.png").write_bytes(picture.light)
    page = target / "report.html"
    page.write_text(_page(found, title or f"Runs in {found.folder.name}", columns, rows, pictures), encoding="utf-8")
    log.info("%d runs, %d left out", len(found.rows), len(found.broken))
    for name, reason in found.broken.items():
        log.info("left out: %s: %s", name, reason)
    log.info("%s", page)
    return page


def on_front(found: Gathered, quality: str | None) -> list[bool]:
    """For each row, whether it is on the Pareto front of peak memory, speed and quality."""
    from liveavatar.report.figures import worth

    known = [row.peak is not None and row.number(FPS) is not None for row in found.rows]
    wins = iter(pareto([worth(row, quality, found.rows) for row, has in zip(found.rows, known, strict=True) if has]))
    return [next(wins) if is_known else False for is_known in known]


def table(found: Gathered, quality: str | None) -> list[tuple[bool, list[str]]]:
    """Each run as words, and whether it is on the front."""
    rows = []
    for best, row in zip(on_front(found, quality), found.rows, strict=True):
        shown = [row.label, row.strategy, str(row.metrics.get("run/ranks", ""))]
        shown += [_told(row.number(quality), 1.0)] if quality else []
        keys = _shown(found)
        shown += [_told(row.peak, 1e6), *(_told(row.number(key), 1e6 if "bytes" in key else 1.0) for key in keys)]
        rows.append((best, shown))
    return rows


def _shown(found: Gathered) -> list[str]:
    """The columns that say something: traffic only where there is any."""
    return [key for key in SHOWN if "bytes" not in key or any(row.number(key) for row in found.rows)]


def _columns(found: Gathered, quality: str | None) -> list[str]:
    from liveavatar.report.figures import titled

    last = [titled(quality, found.rows)] if quality else []
    return ["run", "strategy", "ranks", *last, "peak, MB", *(SHOWN[key] for key in _shown(found))]


def _told(value: float | None, unit: float) -> str:
    if value is None:
        return "–"
    scaled = value / unit
    return f"{scaled:.0f}" if abs(scaled) >= 1000 else f"{scaled:.3g}"


def _write_csv(path: Path, found: Gathered, quality: str | None) -> None:
    """Everything: what was varied, and every metric."""
    varied = list(dict.fromkeys(key for row in found.rows for key in row.varied))
    measured = list(dict.fromkeys(key for row in found.rows for key in row.metrics))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "on_front", *(f"config/{key}" for key in varied), *measured])
        for best, row in zip(on_front(found, quality), found.rows, strict=True):
            given: list[Any] = [row.varied.get(key, "") for key in varied]
            writer.writerow([row.name, best, *given, *(row.metrics.get(key, "") for key in measured)])


def _markdown(found: Gathered, columns: Sequence[str], rows: Sequence[tuple[bool, list[str]]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for best, cells in rows:
        shown = [f"**{cells[0]}**" if best else cells[0], *cells[1:]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in shown) + " |")
    lines += ["", "Bold: on the Pareto front of peak memory, speed and quality. " + _stamp(found.rows)]
    if found.broken:
        lines += ["", "Left out:", ""]
        lines += [f"- `{name}`: {reason.splitlines()[0] if reason else ''}" for name, reason in found.broken.items()]
    return "\n".join(lines) + "\n"


def _stamp(rows: Sequence[Row]) -> str:
    """What all this was measured on; several machines are all named."""
    words = {"run/threads": "threads a rank", "run/torch": "torch", "model": "model"}
    machines = set()
    for row in rows:
        of = row.metrics
        named = f"{of.get('run/gpu') or of.get('run/cpu', 'an unknown machine')}, {of.get('run/cores', '?')} cores"
        about = (f"{words[key]} {of.get(key, '?')}" for key in ("run/threads", "run/torch", "model"))
        machines.add(f"{named}, {', '.join(about)}, weights {of.get('weights', '?')}")
    return "Measured on " + "; ".join(sorted(machines)) + "." if machines else ""


def _pictures(found: Gathered, quality: str | None) -> list[Picture]:
    if find_spec("matplotlib") is None:
        log.warning("no figures were drawn: %s", ADVICE)
        return []
    from liveavatar.report.figures import draw_all

    return draw_all(found, quality)


def _page(
    found: Gathered,
    title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[bool, list[str]]],
    pictures: Sequence[Picture],
) -> str:
    """One file that needs no other: figures are in it, for a light and for a dark page."""
    say = html.escape
    head = "".join(f"<th>{say(column)}</th>" for column in columns)
    body = "".join(
        f"<tr{' class=best' if best else ''}>" + "".join(f"<td>{say(cell)}</td>" for cell in cells) + "</tr>"
        for best, cells in rows
    )
    broken = "".join(
        f"<tr><td><code>{say(name)}</code></td><td class=why>{say(why)}</td></tr>" for name, why in found.broken.items()
    )
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{say(title)}</title><style>{STYLE}</style><h1>{say(title)}</h1>",
        f"<p>{len(found.rows)} runs, {len(found.broken)} left out. {say(_stamp(found.rows))}</p>",
        *(_figure(picture) for picture in pictures),
        f"<h2>Runs</h2><div class=wide><table><tr>{head}</tr>{body}</table></div><p>Green: on the Pareto front.</p>"
        if rows
        else "<p>No run has come to its end.</p>",
        f"<h2>Left out</h2><div class=wide><table>{broken}</table></div>" if broken else "",
    ]  # fmt: skip
    return "\n".join(parts) + "</html>\n"


def _figure(picture: Picture) -> str:
    light, dark = (f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in (picture.light, picture.dark))
    words = html.escape(picture.caption, quote=True)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{words}"></picture><figcaption>{words}</figcaption></figure>'
    )
