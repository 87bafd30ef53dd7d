"""A finding, and how findings are shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, NOTE, WARN, FAIL = "ok", "note", "warn", "fail"
COLOURS = {OK: "green", NOTE: "cyan", WARN: "yellow", FAIL: "bold red"}


@dataclass(frozen=True)
class Finding:
    """What was looked at and what was found. `mend` is the command or setting that mends it.

    state: ok; note, good to know; warn, a run may start and be slow or fail later; fail, none can start.
    """

    group: str
    name: str
    state: str
    said: str
    mend: str = ""


def can_start(findings: Sequence[Finding]) -> bool:
    return not any(finding.state == FAIL for finding in findings)


def verdict(findings: Sequence[Finding]) -> str:
    """The whole in a line."""
    counts = {state: sum(finding.state == state for finding in findings) for state in (FAIL, WARN)}
    if counts[FAIL]:
        return f"a run cannot start: {counts[FAIL]} to mend" + (f", {counts[WARN]} to look at" if counts[WARN] else "")
    return "a run can start" + (f"; {counts[WARN]} to look at" if counts[WARN] else "")


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """What `output.json` holds."""
    return {"format": 1, "can_start": can_start(findings), "findings": [asdict(finding) for finding in findings]}


def show(findings: Sequence[Finding]) -> None:
    """A table on a terminal; in a pipe one line each, tab-separated, and the command that mends below it."""
    if sys.stdout.isatty():
        try:
            return _table(findings)
        except ImportError:  # the doctor runs where nothing is installed yet
            pass
    for finding in findings:
        sys.stdout.write(f"{finding.state}\t{finding.group}\t{finding.name}\t{finding.said}\n")
        if finding.mend:
            sys.stdout.write(f"\t\tmend:\t{finding.mend}\n")
    sys.stdout.write(f"{verdict(findings)}\n")
    return None


def _table(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for head in ("", "what", "found"):
        table.add_column(head, overflow="fold")
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            table.add_row("", Text(group, style="bold"), "")
        said = Text(finding.said)
        if finding.mend:
            said.append(f"\n→ {finding.mend}", style="bold")
        table.add_row(Text(finding.state, style=COLOURS[finding.state]), finding.name, said)
    console = Console()
    console.print(table)
    console.print(Text(verdict(findings), style=COLOURS[OK if can_start(findings) else FAIL]))
