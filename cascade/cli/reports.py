"""How the commands that measure show what they are doing, and what they found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cascade.cli.progress import Progress

if TYPE_CHECKING:
    from cascade.eval.report import Report


class Bars:
    """A progress for each part of some work, one after another; for use in a `with` statement, as `on_progress` of a function."""

    def __init__(self) -> None:
        self._now: Progress | None = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._now is not None:
            self._now.__exit__(None, None, None)

    def __call__(self, title: str, done: int, total: int) -> None:
        if self._now is None or self._now.title != title:
            self.__exit__()
            self._now = Progress(title, "sets" if title.startswith("intervals") else "pictures")
        self._now.update(done, total)


def show(report: Report, folder: Path) -> None:
    """Print the table of a report that was written to `folder`, its notes, and where its page is."""
    from cascade.eval.report import table

    print(table(report))
    for note in report.notes:
        print(f"- {note}")
    print(folder / "report.html")
