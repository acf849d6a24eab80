"""Reports: what a measurement gave, and how its table is shown as text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cascade.eval.bootstrap import Interval
from cascade.eval.images import Images
from cascade.eval.text import printable

Value = float | str | Interval | None

GAP = 4  # white pixels between the images of a contact sheet


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table.

    name: What was measured.
    values: By column; a column that is missing was not measured.
    note: How it was measured, and where it is published; why it can't be compared.
    ours: Whether it was measured by this program now.
    comparable: Whether it was measured as the first row was.
    """

    name: str
    values: Mapping[str, Value]
    note: str = ""
    ours: bool = False
    comparable: bool = True


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Rows of images under one heading.

    title: Heading.
    caption: What is seen, one sentence or two.
    rows: Name of each row and its images, uint8 RGB [N, S, S, 3]; N and S may differ between rows.
    """

    title: str
    caption: str
    rows: tuple[tuple[str, Images], ...]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Named lines through points, (x, y); x is drawn by its logarithm."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a measurement gave.

    title: Heading.
    facts: What it depends on, as name and text.
    columns: Names of the table's columns, in order.
    rows: Of the table, ours first.
    notes: What a reader must know, one sentence or two each.
    pictures: What it looks like.
    curve: What the HTML page draws below the table; None = nothing.
    details: Everything measured, for JSON alone.
    """

    title: str
    facts: Mapping[str, str]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    curve: Curve | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def table(report: Report) -> str:
    """The table as Markdown, its columns aligned so that it can be read as plain text."""
    header = ["", *report.columns, "note"]
    lines = [header] + [
        [f"**{row.name}**" if row.ours else row.name, *(shown(row.values.get(column)) for column in report.columns), _note(row)]
        for row in report.rows
    ]
    lines = [[printable(cell).replace("|", "/") for cell in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    sides = [str.ljust, *[str.rjust] * len(report.columns), str.ljust]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (w - 1) + ":" for w in widths[1:-1]), "-" * widths[-1]]
    padded = [[side(cell, width) for side, cell, width in zip(sides, line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def number_of(value: Value) -> float | None:
    """The number in a cell; None where it holds none."""
    if isinstance(value, Interval):
        return value.estimate
    return None if isinstance(value, str) else value


def shown(value: Value) -> str:
    """A value as tables have it, four digits; an interval as "3.94 [3.89, 3.99]"."""
    if value is None:
        return "-"
    if isinstance(value, Interval):
        return f"{shown(value.estimate)} {interval_shown(value)}"
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def interval_shown(interval: Interval) -> str:
    """The ends of an interval with as many decimals as tell its width, and no fewer than two digits of it."""
    width = interval.high - interval.low
    decimals = 0 if not width > 0 else min(max(0, 1 - math.floor(math.log10(width))), 6)
    ends = (f"{end:.{decimals}f}" if abs(end) < 1e4 else f"{end:,.0f}" for end in (interval.low, interval.high))
    return f"[{', '.join(ends)}]"


def _note(row: Row) -> str:
    return row.note if row.comparable else ": ".join(["not comparable", *[row.note] * bool(row.note)])


def contact_sheet(rows: Sequence[Images]) -> Images:
    """Images side by side on white, [H, W, 3]; a row for each set of [N, S, S, 3].

    N and S may differ between rows: smaller images are enlarged to the size of the largest, as far as whole pixels allow.
    """
    largest = max(row.shape[1] for row in rows)
    rows = [row.repeat(largest // row.shape[1], axis=1).repeat(largest // row.shape[1], axis=2) for row in rows]
    strips = [np.hstack(list(np.pad(row, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255))) for row in rows]
    width = max(strip.shape[1] for strip in strips)
    padded = [np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)), constant_values=255) for strip in strips]
    return np.vstack(padded)[:-GAP, :-GAP]
