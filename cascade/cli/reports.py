"""How the commands that measure show what they found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cascade.eval.report import Report


def show(report: Report, folder: Path) -> None:
    """Print the table of a report that was written to `folder`, its notes, and where its page is."""
    from cascade.eval.report import table

    print(table(report))
    for note in report.notes:
        print(f"- {note}")
    print(folder / "report.html")
