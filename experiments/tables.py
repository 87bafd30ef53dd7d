"""Results of an experiment: rows as a CSV, what they were measured on, and their table in the README.md beside them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def write(out: Path, name: str, rows: Rows, stamp: Mapping[str, Any]) -> str:
    """`<name>.csv` and `<name>.json` in a folder, and the table between the marks of that name in its README.md.

    Returns the table.
    """
    save(out, rows, stamp, f"{name}.csv", f"{name}.json")
    device = stamp.get("run/gpu", stamp.get("run/cpu", "?"))
    stamped = f"{device}, {stamp.get('run/threads')} thread(s), torch {stamp.get('run/torch')}; `{name}.json`."
    written, page = f"{markdown(rows)}\n\n{stamped}", out / "README.md"
    if page.is_file():
        text, mark = page.read_text(encoding="utf-8"), f"<!-- {name} -->"
        pattern = re.compile(f"{re.escape(mark)}.*?{re.escape(mark)}", re.DOTALL)
        page.write_text(pattern.sub(lambda _: f"{mark}\n{written}\n{mark}", text), encoding="utf-8")
    return written


def save(
    out: Path,
    rows: Rows,
    stamp: Mapping[str, Any],
    table: str = "results.csv",
    about: str = "stamp.json",
    digits: str = "",
) -> None:
    """The rows and their stamp as files of a folder, which is made. `digits`: how a float is written, as in `.5g`."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / table).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns(rows))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: format(v, digits) if isinstance(v, float) else v for key, v in row.items()})
    (out / about).write_text(
        json.dumps(dict(stamp), indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
    )


def columns(rows: Rows) -> list[str]:
    """Every key of any row, in the order of their first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def markdown(rows: Rows, digits: str = ".4g") -> str:
    """The rows as a table; what a row lacks is an empty cell."""
    names = columns(rows)
    told = [[format(v, digits) if isinstance(v := row.get(n, ""), float) else str(v) for n in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [names, ["---"] * len(names), *told])
