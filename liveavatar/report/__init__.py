"""Run directories read back: a table, figures, one page. Needs no torch; figures need matplotlib."""

from liveavatar.report.gather import Gathered, gather
from liveavatar.report.write import report

__all__ = ["Gathered", "gather", "report"]
