"""A report as one HTML page, for light and dark screens and for paper, that loads nothing."""

import base64
import html
import io
import math

from PIL import Image

from cascade.eval.bootstrap import Interval
from cascade.eval.images import Images
from cascade.eval.report import Curve, Picture, Report, Row, Value, interval_shown, shown

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 340, 64, 190, 16, 52   # of a curve's drawing and its margins
TICKS = 4
LABEL_WIDTH = 40    # least distance of two labels below the drawing
SMALL = 128  # side below which pictures are shown with their pixels as squares
HEADS = 5    # numbers that stand large above the table

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1b1f24; --soft: #5b6570; --line: #d9dee4; --paper: #fff; --tint: #f3f6fa; --mark: #0b62b8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7ebef; --soft: #9aa5b1; --line: #333b44; --paper: #14171a; --tint: #1c2126; --mark: #6cb2f5; }
}
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1180px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 1.5rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .25rem; }
.heads { display: flex; flex-wrap: wrap; gap: .75rem; margin: 0 0 1.75rem; }
.head { flex: 1 1 9rem; border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; background: var(--tint); }
.head b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.head span { display: block; font-size: .8rem; color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th { font-weight: 600; font-size: .8rem; color: var(--soft); vertical-align: bottom; border-bottom: 2px solid var(--line); }
th, td { padding: .45rem .7rem; text-align: right; }
td { vertical-align: top; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th:not(:first-child) { min-width: 4.6rem; } td:first-child { min-width: 15rem; }
td small { display: block; color: var(--soft); font-size: .75rem; }
td:not(:first-child), td:not(:first-child) small { white-space: nowrap; }
td i { color: var(--line); font-style: normal; }
em { font-style: normal; font-size: .7rem; border: 1px solid var(--line); border-radius: 4px; padding: .05rem .35rem;
  margin-right: .4rem; color: var(--soft); white-space: nowrap; }
tr.ours td { background: var(--tint); }
tr.ours td:first-child b { font-weight: 600; } td b { font-weight: 400; }
tr.ours td:first-child { box-shadow: inset 3px 0 var(--mark); }
tr.apart td { color: var(--soft); }
ul.notes { margin: 1.25rem 0 0; padding-left: 1.1rem; color: var(--soft); font-size: .9rem; max-width: 46rem; }
ul.notes li { margin: .3rem 0; }
figure { margin: 0; break-inside: auto; }
figcaption { color: var(--soft); font-size: .9rem; margin-bottom: .75rem; max-width: 46rem; }
.rows { display: grid; gap: 4px 4px; align-items: center; }
.rows span { font-size: .82rem; color: var(--soft); padding-right: .6rem; overflow-wrap: anywhere; }
.rows img { display: block; width: 100%; border-radius: 3px; background: #fff; }
.rows img.small { image-rendering: pixelated; }
svg { display: block; max-width: 100%; height: auto; font: 13px system-ui, sans-serif; fill: var(--ink); margin-top: .75rem; }
svg .grid { stroke: var(--line); } svg .soft { fill: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; font-size: .88rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  body { padding: 1.25rem .9rem 3rem; } dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; }
}
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --tint: #fff; --mark: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .wide { overflow: visible; } h2 { break-after: avoid; } .head, tr, svg, .rows > * { break-inside: avoid; }
  table { font-size: 7.5pt; } th, td { padding: .2rem .3rem; } td:first-child { min-width: 0; }
}
"""


def page(report: Report) -> str:
    """The whole page."""
    heads = "".join(f"<th>{html.escape(text)}</th>" for text in ("", *report.columns))
    body = "".join(_row(report, row) for row in report.rows)
    facts = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in report.facts.items())
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in report.notes)
    curve = _drawing(report.curve) if report.curve is not None else ""
    figures = "".join(_figure(picture) for picture in report.pictures)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(report.title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>\n'
        f"<h1>{html.escape(report.title)}</h1>\n{_heads(report)}"
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>\n'
        f'<ul class="notes">{notes}</ul>\n{curve}\n{figures}\n<h2>Made from</h2><dl>{facts}</dl>\n</body></html>\n'
    )


def png(image: Images) -> bytes:
    """An image [H, W, 3] as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _heads(report: Report) -> str:
    """The numbers of the first row of ours, large."""
    row = next((row for row in report.rows if row.ours), None)
    values = {} if row is None else row.values
    found = [(name, values[name]) for name in report.columns if values.get(name) is not None][:HEADS]
    cards = "".join(f'<div class="head"><span>{html.escape(name)}</span>{_number(value, "b")}</div>' for name, value in found)
    return f'<div class="heads">{cards}</div>\n' if cards else ""


def _row(report: Report, row: Row) -> str:
    kind = "ours" if row.ours else "" if row.comparable else "apart"
    cells = "".join(f"<td>{_number(row.values.get(column), '')}</td>" for column in report.columns)
    note = ("" if row.comparable else "<em>not comparable</em>") + html.escape(row.note)
    return f'<tr class="{kind}"><td><b>{html.escape(row.name)}</b><small>{note}</small></td>{cells}</tr>'


def _number(value: Value, tag: str) -> str:
    """A value in an element of its own, if any, and its interval small below it."""
    if value is None:
        return "<i>-</i>"
    text = html.escape(shown(value.estimate if isinstance(value, Interval) else value))
    text = f"<{tag}>{text}</{tag}>" if tag else text
    small = "span" if tag else "small"
    return f"{text}<{small}>{interval_shown(value)}</{small}>" if isinstance(value, Interval) else text


def _figure(picture: Picture) -> str:
    places = max(len(images) for _, images in picture.rows)
    cells = []
    for name, images in picture.rows:
        empty = ["<i></i>"] * (places - len(images))
        cells += [f"<span>{html.escape(name)}</span>", *(_image(image, name) for image in images), *empty]
    style = f"grid-template-columns: minmax(5rem, 8rem) repeat({places}, minmax(0, 116px))"
    caption = f"<figcaption>{html.escape(picture.caption)}</figcaption>"
    rows = f'<div class="rows" style="{style}">{"".join(cells)}</div>'
    return f"<h2>{html.escape(picture.title)}</h2><figure>{caption}{rows}</figure>"


def _image(image: Images, name: str) -> str:
    kind = ' class="small"' if len(image) < SMALL else ""
    return f'<img{kind} alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(png(image)).decode()}">'


def _drawing(curve: Curve) -> str:
    """The curve as SVG: x by its logarithm, since steps double; y from 0."""
    points = [point for line in curve.lines.values() for point in line]
    xs = [math.log(max(x, 1e-9)) for x, _ in points]
    low, high = min(xs), max(xs)
    step = _nice_step(max(y for _, y in points))
    top = step * TICKS
    floor = HEIGHT - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log(max(x, 1e-9)) - low) / (high - low) if high > low else 0.5
        return LEFT + 24 + across * (WIDTH - LEFT - RIGHT - 48), floor - (floor - TOP) * y / top

    parts = []
    for tick in range(TICKS + 1):
        height = at(1, tick * step)[1]
        parts.append(f'<path class="grid" d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}"/>')
        label = f'<text class="soft" x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{tick * step:g}</text>'
        parts.append(label)
    taken = -math.inf
    for x in sorted({x for x, _ in points}):
        place = at(x, 0)[0]
        if place - taken >= LABEL_WIDTH:
            parts.append(f'<text class="soft" x="{place:.1f}" y="{floor + 20}" text-anchor="middle">{shown(x)}</text>')
            taken = place
    parts += [_line(number, name, [at(x, y) for x, y in sorted(line)]) for number, (name, line) in enumerate(curve.lines.items())]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="soft" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(curve.x)}</text>')
    turned = f'transform="translate(14 {floor / 2}) rotate(-90)"'
    parts.append(f'<text class="soft" {turned} text-anchor="middle">{html.escape(curve.y)}</text>')
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">{"".join(parts)}</svg>'
    return f"<h2>{html.escape(curve.title)}</h2><figure>{svg}</figure>"


def _line(number: int, name: str, places: list[tuple[float, float]]) -> str:
    """One line, its points, and its name in a list at the right."""
    colour = f"hsl({(208 + 137 * number) % 360} 70% 48%)"
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in places)
    left, height = WIDTH - RIGHT + 16, TOP + 14 + 20 * number
    legend = f'<path d="M{left} {height - 4}h16" stroke="{colour}" stroke-width="3"/>'
    legend += f'<text x="{left + 22}" y="{height}">{html.escape(name)}</text>'
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}{legend}'


def _nice_step(most: float) -> float:
    """A round number of which `TICKS` reach at least `most`."""
    least = max(most, 1e-9) / TICKS
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= least * (1 - 1e-12))
