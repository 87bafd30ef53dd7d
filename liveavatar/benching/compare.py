"""A run against a table that was kept: counts must be the same, ratios not much worse. Seconds are not compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from liveavatar.benching.summary import COUNTS, RATIOS


def previous(given: str | None, suite: str, short: bool) -> Path | None:
    """The table to compare with: `given`, or (`auto`) the committed one of this suite, where there is one."""
    if given is None:
        return None
    if given != "auto":
        path = Path(given).expanduser()
        if not path.is_file():
            raise ValueError(f"compare.previous={given} is no file: name the results.json of an earlier run, or null")
        return path
    name = f"{suite}_short" if short else suite
    path = Path(__file__).resolve().parents[2] / "experiments" / "peers" / name / "results.json"
    return path if path.is_file() else None


def differences(
    before: Path, rows: Sequence[Mapping[str, Any]], tolerance: float, ratios: bool
) -> tuple[list[str], int]:
    """What differs, a sentence each, and how many values were compared.

    Raises ValueError for a file that is no table.
    """
    try:
        kept = {row["row"]: row for row in json.loads(before.read_text(encoding="utf-8"))["rows"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"compare.previous={before} is no results.json of a bench ({error})") from error
    found, compared = [], 0
    for row in rows:
        other = kept.get(row["row"])
        if other is None or row["status"] != "ok" or other["status"] != "ok":
            continue
        for name in (*COUNTS, *(RATIOS if ratios else ())):
            if name not in row or name not in other:
                continue
            compared += 1
            now, then = row[name], other[name]
            if name in RATIOS and now > then * (1 + tolerance):
                found.append(f"{row['row']}: {name} was {then:.3f} and is {now:.3f}, above the {tolerance:.0%} allowed")
            if name in COUNTS and now != then:
                found.append(f"{row['row']}: {name} was {then} and is {now}")
    return found, compared
