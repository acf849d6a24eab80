"""`cascade train plot`: the curves of one run or several as a picture."""

from __future__ import annotations

import itertools
import math
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade.cli.errors import Failure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "plot"
HELP = "Draw the curves of runs: loss, loss by noise level, gradient norm, rate, validation, speed and memory."

SMOOTHED_OVER = 0.01
"""Share of a run's images over which a smoothed curve averages, to either side."""

_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#a463f2", "#9c6b4e", "#ff8ab7", "#97bbf5")
_PANEL_INCHES = (5.2, 3.2)
_GROUPS = {
    "loss_by_log_snr": "loss by log-SNR",
    "validation_loss_by_log_snr": "loss on held-out pictures by log-SNR",
}

Record = Mapping[str, Any]
Points = tuple[list[float], list[float]]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run; several are compared")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the picture, a .png (default: curves.png in the run's folder, or here for several)",
    )


def run(args: Namespace) -> None:
    from cascade.stages.training.journal import LOG, read_log

    out = args.out or (args.runs[0] if len(args.runs) == 1 else Path()) / "curves.png"
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out is {out}, expected the name of a .png file")
    logs = {}
    for folder in args.runs:
        logs[str(folder)] = read_log(folder / LOG)
        if not logs[str(folder)]:
            raise ValueError(f"{folder} holds no {LOG} with anything in it, expected the folder of a run that has begun")
    if not find_spec("matplotlib"):
        raise Failure("matplotlib is not installed, which draws the curves; pip install 'cascade-diffusion[train]'")
    _save(figure(logs), out)
    print(out)


def figure(logs: Mapping[str, Sequence[Record]]) -> Figure:
    """The curves of these logs by the names of their runs, as one figure.

    Images seen are on every horizontal axis. Losses by noise level have a panel for each run, most noise darkest.
    """
    from matplotlib.figure import Figure

    shown = [(title, draw) for name, title, draw in _PANELS if any(any(points(log, name)[1]) for log in logs.values())]
    levels = [(group, name) for group in _GROUPS for name, log in logs.items() if names_in(log, group)]
    columns = 3 if len(shown) + len(levels) > 4 else 2
    rows = -(-(len(shown) + len(levels)) // columns)
    drawn = Figure(figsize=(_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows), layout="constrained", dpi=130)
    if len(logs) == 1:
        drawn.suptitle(next(iter(logs)), fontsize="medium")
    axes = iter(drawn.subplots(rows, columns, squeeze=False).flat)
    for title, draw in shown:
        ax = next(axes)
        draw(ax, logs)
        _finish(ax, title)
    first: dict[str, Axes] = {}
    for group, name in levels:
        ax = next(axes)
        _by_level(ax, logs[name], group)
        _finish(ax, _GROUPS[group] + f"\n{name}" * (len(logs) > 1))
        if first.setdefault(group, ax) is not ax:
            ax.sharey(first[group])
    for ax in axes:
        ax.set_axis_off()
    return drawn


def points(log: Sequence[Record], name: str, inner: str | None = None) -> Points:
    """Images seen and the values measured then; lines of the log that lack the value are passed over.

    `inner` names one value of a group.
    """
    found = [(record["images_seen"], (record.get(name) or {}).get(inner) if inner else record.get(name)) for record in log]
    pairs = [(float(images), float(value)) for images, value in found if value is not None]
    return [images for images, _ in pairs], [value for _, value in pairs]


def names_in(log: Sequence[Record], group: str) -> list[str]:
    """The names of a group's values that the log has anywhere, by the number in them: most noise first."""
    names = {name for record in log for name in record.get(group) or {}}
    return sorted(names, key=_number)


def smoothed(images: Sequence[float], values: Sequence[float], over: float) -> list[float]:
    """Averages around every point over about `over` images to both sides, so that nothing is moved along the axis.

    A value counts exp(-distance / over) times; the weights of each average are made to sum to 1. `over` = 0 leaves the values.
    """
    ahead = _decaying_sums(images, values, over)
    behind = _decaying_sums([-place for place in reversed(images)], list(reversed(values)), over)[::-1]
    sums = [(a + b - value, m + n - 1) for (a, m), (b, n), value in zip(ahead, behind, values, strict=True)]
    return [total / weight for total, weight in sums]


def _decaying_sums(images: Sequence[float], values: Sequence[float], over: float) -> list[tuple[float, float]]:
    """At every point, the sum of the values so far and that of their weights, each decaying with the distance since."""
    sums, total, weight, before = [], 0.0, 0.0, images[0] if images else 0.0
    for place, value in zip(images, values, strict=True):
        decay = math.exp(-(place - before) / over) if over else 0.0
        total, weight, before = total * decay + value, weight * decay + 1, place
        sums.append((total, weight))
    return sums


def _number(name: str) -> float:
    """Place of a bin in the order of log-SNR: "below -8", "-8 to -6", "above 8", or a plain number."""
    low = float(name.split()[-1])
    return low + (1 if name.startswith("above") else 0)


def _loss(ax: Axes, logs: Mapping[str, Sequence[Record]]) -> None:
    for colour, (name, log) in zip(itertools.cycle(_COLOURS), logs.items()):
        images, values = points(log, "loss")
        ax.plot(_thousands(images), values, color=colour, alpha=0.35, linewidth=0.8)
        ax.plot(_thousands(images), smoothed(images, values, _width(images)), color=colour, linewidth=1.6, label=name)
        _mark_sizes(ax, log, colour)
    _log_scale(ax)
    if len(logs) > 1:
        ax.legend(frameon=False, fontsize="small", loc="upper right")


def _mark_sizes(ax: Axes, log: Sequence[Record], colour: str) -> None:
    """A line where the pictures' size changes, as from there on another loss is measured."""
    images, sizes = points(log, "size")
    for before, old, new in zip(images, sizes, sizes[1:], strict=False):
        if old != new:
            ax.axvline(before / 1000, color=colour, linewidth=0.8, linestyle=":")
            ax.text(before / 1000, 0.02, f" {new:g} px", transform=ax.get_xaxis_transform(), fontsize="x-small", color=colour)


def _lines(name: str, log: bool = False, marker: str = "") -> Callable[[Axes, Mapping[str, Sequence[Record]]], None]:
    def draw(ax: Axes, logs: Mapping[str, Sequence[Record]]) -> None:
        for colour, lines in zip(itertools.cycle(_COLOURS), logs.values()):
            images, values = points(lines, name)
            ax.plot(_thousands(images), values, color=colour, linewidth=1.2, marker=marker, markersize=3)
        if log:
            _log_scale(ax)
        else:
            ax.set_ylim(0, 1.08 * ax.dataLim.y1)

    return draw


def _by_level(ax: Axes, log: Sequence[Record], group: str) -> None:
    from matplotlib import colormaps

    names = names_in(log, group)
    for i, name in enumerate(names):
        images, values = points(log, group, name)
        over = _width(images) if group == "loss_by_log_snr" else 0
        colour = colormaps["viridis"](0.95 * i / max(1, len(names) - 1))
        ax.plot(_thousands(images), smoothed(images, values, over), color=colour, linewidth=1.2, label=name)
    _log_scale(ax)
    ax.legend(
        frameon=False, fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5), title="log-SNR", title_fontsize="x-small"
    )


def _finish(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize="medium", loc="left")
    ax.set_xlabel("images seen, thousands", fontsize="small")
    ax.set_xlim(left=0)
    ax.tick_params(labelsize="small", which="both")
    ax.grid(alpha=0.25, linewidth=0.6, which="both")
    ax.spines[["top", "right"]].set_visible(False)


def _log_scale(ax: Axes) -> None:
    """Logarithmic, with plain numbers at the ticks that matplotlib finds worth a label."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: Any = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(Plain())
    ax.yaxis.set_minor_formatter(Plain(minor_thresholds=(2, 0.6)))


def _width(images: Sequence[float]) -> float:
    return SMOOTHED_OVER * max(images, default=0)


def _thousands(images: Sequence[float]) -> list[float]:
    return [count / 1000 for count in images]


_PANELS = (
    ("loss", "loss", _loss),
    ("validation_loss", "loss on held-out pictures", _lines("validation_loss", log=True, marker="o")),
    ("gradient_norm", "gradient norm before clipping", _lines("gradient_norm", log=True)),
    ("learning_rate", "learning rate", _lines("learning_rate")),
    ("images_per_second", "training images per second", _lines("images_per_second")),
    ("memory_gib", "memory of the largest process, GiB", _lines("memory_gib")),
    ("skipped_steps", "skipped steps since the point before", _lines("skipped_steps")),
    ("damaged_pictures", "damaged pictures since the point before", _lines("damaged_pictures")),
)
"""Name in the log, title, and what draws it, of all panels but those by noise level; one that has nothing but 0 is left out."""


def _save(drawn: Figure, out: Path) -> None:
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            drawn.savefig(partial, format="png")
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise Failure(f"{out} could not be written: {error.strerror or error}") from error
