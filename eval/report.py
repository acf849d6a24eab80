"""Reports: one table with its notes and pictures as Markdown, JSON and a single HTML page that needs no other file."""

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.images import Images

Value = float | str | None

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid #8886; text-align: right; vertical-align: top; }
th:first-child, td:first-child, td.note { text-align: left; }
tr.ours { font-weight: 600; }
tr.apart { opacity: .65; }
img { max-width: 100%; height: auto; image-rendering: auto; }
figure { margin: 1.5rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        name: what was measured.
        values: by column; a column that is missing was not measured.
        note: how it was measured, and where it is published; why it can't be compared.
        ours: whether it was measured by this program now.
        comparable: whether it was measured as the first row was.
    """

    name: str
    values: Mapping[str, Value]
    note: str = ""
    ours: bool = False
    comparable: bool = True


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of a report: uint8 RGB, [H, W, 3]."""

    title: str
    caption: str
    image: Images


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Named lines through points, (x, y), from left to right."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a measurement gave.

    Attributes:
        title: heading.
        facts: what it depends on, as name and text.
        columns: names of the table's columns, in order.
        rows: of the table, ours first.
        notes: what a reader must know, one sentence or two each.
        pictures: what it looks like.
        curve: what the HTML page draws beside the table; None = nothing.
        details: everything measured, for JSON alone.
    """

    title: str
    facts: Mapping[str, str]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    curve: Curve | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write report.md, report.json and report.html, each whole or not at all; the Markdown names pictures in `pictures/`.

    Raises:
        OSError: if the folder can't be written.
    """
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    names = [f"{number:02d}.png" for number in range(1, len(report.pictures) + 1)]
    for name, picture in zip(names, report.pictures, strict=True):
        _write(pictures / name, _png(picture.image))
    texts = {
        "report.md": markdown(report, [f"pictures/{name}" for name in names]),
        "report.json": as_json(report),
        "report.html": page(report),
    }
    for file_name, text in texts.items():
        _write(folder / file_name, text.encode())
    return [folder / file_name for file_name in texts]


def table(report: Report) -> str:
    """The table as Markdown, its columns aligned so that it can be read as plain text."""
    header = ["", *report.columns, "note"]
    lines = [header] + [
        [_name(row), *(shown(row.values.get(column)) for column in report.columns), _note(row)] for row in report.rows
    ]
    lines = [[cell.replace("|", "/") for cell in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    sides = [str.ljust, *[str.rjust] * len(report.columns), str.ljust]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (w - 1) + ":" for w in widths[1:-1]), "-" * widths[-1]]
    padded = [[side(cell, width) for side, cell, width in zip(sides, line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def markdown(report: Report, pictures: Sequence[str]) -> str:
    """The report as Markdown; `pictures` are the paths by which it shows them, one each."""
    parts = [f"# {report.title}", table(report)]
    parts += ["\n".join(f"- {note}" for note in report.notes)] * bool(report.notes)
    parts.append("\n".join(f"- {name}: {text}" for name, text in report.facts.items()))
    for picture, path in zip(report.pictures, pictures, strict=True):
        parts.append(f"## {picture.title}\n\n{picture.caption}\n\n![{picture.title}]({path})")
    return "\n\n".join(parts) + "\n"


def as_json(report: Report) -> str:
    """Everything but the pictures."""
    rows = [{**vars(row), "values": dict(row.values)} for row in report.rows]
    kept = {
        "title": report.title,
        "facts": dict(report.facts),
        "columns": report.columns,
        "rows": rows,
        "notes": report.notes,
        "details": dict(report.details),
    }
    return json.dumps(kept, indent=2, ensure_ascii=False) + "\n"


def page(report: Report) -> str:
    """One HTML page with its pictures inside; it loads nothing."""
    heads = "".join(f"<th>{html.escape(text)}</th>" for text in ("", *report.columns, "note"))
    body = "".join(_row(report, row) for row in report.rows)
    facts = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in report.facts.items())
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in report.notes)
    figures = "".join(_figure(picture) for picture in report.pictures)
    figures = (_drawing(report.curve) if report.curve is not None else "") + figures
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(report.title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>\n'
        f"<h1>{html.escape(report.title)}</h1>\n"
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>\n'
        f"<ul>{notes}</ul>\n{figures}\n<h2>Made from</h2><dl>{facts}</dl>\n</body></html>\n"
    )


def contact_sheet(rows: Sequence[Images], gap: int = 4) -> Images:
    """Images side by side on white, [H, W, 3]; a row for each set of [N, S, S, 3], N and S may differ between rows."""
    heights = [row.shape[1] for row in rows]
    width = max(len(row) * (row.shape[2] + gap) for row in rows) - gap
    sheet = np.full((sum(heights) + gap * (len(rows) - 1), width, 3), 255, np.uint8)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for place, image in enumerate(row):
            left = place * (height + gap)
            sheet[top : top + height, left : left + height] = image
        top += height + gap
    return sheet


def shown(value: Value) -> str:
    """A value as the table prints it: four significant digits at most."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _name(row: Row) -> str:
    return f"**{row.name}**" if row.ours else row.name


def _note(row: Row) -> str:
    return row.note if row.comparable else f"not comparable: {row.note}".rstrip(": ")


def _row(report: Report, row: Row) -> str:
    kind = "ours" if row.ours else "" if row.comparable else "apart"
    cells = "".join(f"<td>{html.escape(shown(row.values.get(column)))}</td>" for column in report.columns)
    return f'<tr class="{kind}"><td>{html.escape(row.name)}</td>{cells}<td class="note">{html.escape(_note(row))}</td></tr>'


def _figure(picture: Picture) -> str:
    data = base64.b64encode(_png(picture.image)).decode()
    title, caption = html.escape(picture.title), html.escape(picture.caption)
    image = f'<img alt="{title}" src="data:image/png;base64,{data}">'
    return f"<h2>{title}</h2><figure>{image}<figcaption>{caption}</figcaption></figure>"


def _drawing(curve: Curve) -> str:
    """The curve as SVG, x by its logarithm, since steps double."""
    width, height, left, bottom = 640, 360, 70, 50
    points = [point for line in curve.lines.values() for point in line]
    xs, ys = [math.log(max(x, 1e-9)) for x, _ in points], [y for _, y in points]
    low, high = min(xs), max(xs)
    top = max(*ys, 1e-9) * 1.05

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log(max(x, 1e-9)) - low) / (high - low or 1)
        return left + across * (width - left - 150), (height - bottom) * (1 - y / top)

    parts = [f'<path d="M{left} 0V{height - bottom}H{width - 130}" fill="none" stroke="currentColor"/>']
    for x in sorted({x for x, _ in points}):
        parts.append(f'<text x="{at(x, 0)[0]:.1f}" y="{height - bottom + 18}" text-anchor="middle">{shown(x)}</text>')
    for share in (0, 0.5, 1):
        y = top / 1.05 * share
        parts.append(f'<text x="{left - 8}" y="{at(1, y)[1] + 4:.1f}" text-anchor="end">{shown(y)}</text>')
    for number, (name, line) in enumerate(curve.lines.items()):
        colour = f"hsl({(205 + 137 * number) % 360} 65% 50%)"
        places = [at(x, y) for x, y in sorted(line)]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in places]
        x, y = places[-1]
        parts.append(f'<text x="{x + 10:.1f}" y="{y + 4:.1f}" fill="{colour}">{html.escape(name)}</text>')
    middle = (left + width - 150) / 2
    parts.append(f'<text x="{middle}" y="{height - 8}" text-anchor="middle">{html.escape(curve.x)}</text>')
    parts.append(f'<text transform="translate(16 {height / 2}) rotate(-90)" text-anchor="middle">{html.escape(curve.y)}</text>')
    style = "font: 13px system-ui, sans-serif; fill: currentColor; max-width: 100%"
    svg = f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" style="{style}">{"".join(parts)}</svg>'
    return f"<h2>{html.escape(curve.title)}</h2><figure>{svg}</figure>"


def _png(image: Images) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
