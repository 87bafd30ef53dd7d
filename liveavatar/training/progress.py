"""Progress bars that stay silent where there is no terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")


def progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, with a bar on stderr that counts them; nothing is drawn in a pipe."""
    with Bar(what, len(items)) as shown:
        for number, item in enumerate(items):
            yield item
            shown(number + 1, "")


class Bar:
    """A progress bar as a context: call what it gives with the number done and a few words."""

    def __init__(self, what: str, total: int, quiet: bool = False) -> None:
        self.what, self.total, self.quiet = what, total, quiet
        self._bar: Any = None

    def __enter__(self) -> Bar:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError:  # a bare machine: the log alone tells
            return self
        console = Console(stderr=True)
        if not self.quiet and console.is_terminal and self.total:
            columns = (TextColumn(self.what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[words]}"))
            self._bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console)
            self._task = self._bar.add_task(self.what, total=self.total, words="")
            self._bar.start()
        return self

    def __call__(self, done: int, words: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, words=words)

    def __exit__(self, *ended: object) -> None:
        if self._bar is not None:
            self._bar.stop()
