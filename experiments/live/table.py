"""Results of a run: a CSV, what it was measured on, and its table in README.md."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write(out: Path, name: str, rows: Sequence[Mapping[str, Any]], stamp: Mapping[str, Any]) -> str:
    """`<name>.csv` and `<name>.json` in a folder, and the table between the marks of that name in its README.md.

    Returns the table.
    """
    out.mkdir(parents=True, exist_ok=True)
    keys = list(rows[0])
    with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(rows)
    (out / f"{name}.json").write_text(json.dumps(dict(stamp), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = [f"| {' | '.join(keys)} |", f"| {' | '.join('---' for _ in keys)} |"]
    lines += [f"| {' | '.join(_told(row[key]) for key in keys)} |" for row in rows]
    device = stamp.get("run/gpu", stamp.get("run/cpu", "?"))
    lines += ["", f"{device}, {stamp.get('run/threads')} thread(s), torch {stamp.get('run/torch')}; `{name}.json`."]
    table, page = "\n".join(lines), out / "README.md"
    if page.is_file():
        text, mark = page.read_text(encoding="utf-8"), f"<!-- {name} -->"
        pattern = re.compile(f"{re.escape(mark)}.*?{re.escape(mark)}", re.DOTALL)
        page.write_text(pattern.sub(lambda _: f"{mark}\n{table}\n{mark}", text), encoding="utf-8")
    return table


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
