"""A report as one HTML page that loads nothing: what page.html, its template, is filled with."""

import base64
import io
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from cascade.eval.bootstrap import Interval
from cascade.eval.images import Images
from cascade.eval.report import Curve, Report, interval_shown, number_of, shown
from cascade.eval.text import printable

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 340, 64, 190, 16, 52  # of a curve's drawing and its margins
TICKS = 4
LABEL_WIDTH = 40  # least distance of two labels below the drawing
SMALL = 128  # side below which pictures are shown with their pixels as squares
HEADS = 5  # numbers that stand large above the table


def page(report: Report) -> str:
    """The whole page; what the report says is text in it, never HTML."""
    options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, **options)
    templates.finalize = lambda value: printable(value) if type(value) is str else value  # not markup
    templates.tests["interval"] = lambda value: isinstance(value, Interval)
    templates.filters |= {
        "number": lambda value: shown(value if isinstance(value, str) else number_of(value)),
        "ends": interval_shown,
        "in_order": lambda values, columns: [values.get(column) for column in columns],
        "png64": lambda image: base64.b64encode(png(image)).decode(),
    }
    ours = next((row.values for row in report.rows if row.ours), {})
    heads = [(name, ours[name]) for name in report.columns if ours.get(name) is not None][:HEADS]
    plot = None if report.curve is None else _plot(report.curve)
    return templates.get_template("page.html").render(report=report, heads=heads, plot=plot, small=SMALL)


def png(image: Images) -> bytes:
    """An image [H, W, 3] as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _plot(curve: Curve) -> dict[str, Any]:
    """The curve as places in an SVG: x by its logarithm, since steps double; y from 0."""
    points = [point for line in curve.lines.values() for point in line]
    xs = [math.log(max(x, 1e-9)) for x, _ in points]
    low, high = min(xs), max(xs)
    step = _nice_step(max(y for _, y in points))
    floor = HEIGHT - BOTTOM

    def across(x: float) -> float:
        share = (math.log(max(x, 1e-9)) - low) / (high - low) if high > low else 0.5
        return round(LEFT + 24 + share * (WIDTH - LEFT - RIGHT - 48), 1)

    def up(y: float) -> float:
        return round(floor - (floor - TOP) * y / (step * TICKS), 1)

    labels: list[tuple[float, str]] = []
    for x in sorted({x for x, _ in points}):
        if not labels or across(x) - labels[-1][0] >= LABEL_WIDTH:
            labels.append((across(x), shown(x)))
    lines = [
        {
            "name": name,
            "colour": f"hsl({(208 + 137 * number) % 360} 70% 48%)",
            "height": TOP + 14 + 20 * number,
            "places": [(across(x), up(y)) for x, y in sorted(line)],
        }
        for number, (name, line) in enumerate(curve.lines.items())
    ]
    ticks = [(up(tick * step), f"{tick * step:g}") for tick in range(TICKS + 1)]
    box = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "floor": floor}
    return {**box, "ticks": ticks, "labels": labels, "lines": lines}


def _nice_step(most: float) -> float:
    """A round number of which `TICKS` reach at least `most`."""
    least = max(most, 1e-9) / TICKS
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= least * (1 - 1e-12))
