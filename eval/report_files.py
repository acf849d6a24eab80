"""The files of a report: report.md with its pictures, report.json, and report.html, a page that needs no other file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cascade.eval.files import complete
from cascade.eval.page import page, png
from cascade.eval.report import Report, contact_sheet, table
from cascade.eval.text import printable


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write report.md, report.json and report.html, each whole or not at all; the Markdown names pictures in `pictures/`."""
    names = [f"pictures/{number:02d}.png" for number in range(1, len(report.pictures) + 1)]
    sheets = [png(contact_sheet([images for _, images in picture.rows])) for picture in report.pictures]
    texts = {"report.md": markdown(report, names), "report.json": as_json(report), "report.html": page(report)}
    for name, content in [*zip(names, sheets, strict=True), *((name, text.encode()) for name, text in texts.items())]:
        with complete(folder / name) as file:
            file.write(content)
    return [folder / name for name in texts]


def markdown(report: Report, pictures: Sequence[str]) -> str:
    """The report as Markdown; `pictures` are the paths by which it shows them, one each."""
    parts = [f"# {printable(report.title)}", table(report)]
    parts += ["\n".join(f"- {printable(note)}" for note in report.notes)] * bool(report.notes)
    parts.append("\n".join(f"- {printable(name)}: {printable(text)}" for name, text in report.facts.items()))
    for picture, path in zip(report.pictures, pictures, strict=True):
        title, rows = printable(picture.title), printable(", ".join(name for name, _ in picture.rows))
        parts.append(f"## {title}\n\n{printable(picture.caption)} Rows from above: {rows}.\n\n![{title}]({path})")
    return "\n\n".join(parts) + "\n"


def as_json(report: Report) -> str:
    """Everything but the pictures; a value with an interval is an object of estimate, low, high and confidence."""
    rows = [{**vars(row), "values": dict(row.values)} for row in report.rows]
    kept = {name: value for name, value in vars(report).items() if name not in ("pictures", "curve")}
    kept |= {"facts": dict(report.facts), "rows": rows, "details": dict(report.details)}
    return json.dumps(kept, indent=2, ensure_ascii=False, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a report can't hold a {type(value).__name__}")
