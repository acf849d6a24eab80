"""The main curves of training runs as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVES = {"loss": "loss", "validation_loss": "loss on held-out pictures", "learning_rate": "learning rate"}
_SMOOTH = 100
"""Points of a curve: each is the mean of its share of the reports."""


def figure(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """The curves of these logs, by the names of their runs, over images seen; losses by noise level have a panel for each run."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rows = -(-(len(_CURVES) + len(logs)) // 2)
    drawn = Figure(figsize=(11, 3.4 * rows), layout="constrained", dpi=130)
    axes = list(drawn.subplots(rows, 2, squeeze=False).flat)
    for ax, (name, title) in zip(axes, _CURVES.items(), strict=False):
        ax.set_title(title, fontsize="medium", loc="left")
        for run, log in logs.items():
            ax.plot(*curve(log, name), linewidth=1.2, label=run)
    axes[0].legend(frameon=False, fontsize="small")
    for ax, (run, log) in zip(axes[len(_CURVES) :], logs.items(), strict=False):
        ax.set_title(f"loss by log-SNR\n{run}", fontsize="medium", loc="left")
        levels = list(dict.fromkeys(level for record in log for level in record.get("loss_by_log_snr") or {}))
        levels.sort(key=lambda level: float(level.split()[-1]) + level.startswith("above"))  # "below -8", "-8 to -6", "above 8"
        for i, level in enumerate(levels):
            colour = colormaps["viridis"](0.95 * i / max(1, len(levels) - 1))  # most noise darkest
            ax.plot(*curve(log, "loss_by_log_snr", level), linewidth=1.2, color=colour, label=level)
        if levels:
            ax.legend(frameon=False, fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    for ax in axes:
        ax.set_yscale("linear" if ax is axes[list(_CURVES).index("learning_rate")] else "log")
        ax.set_xlabel("images seen, thousands", fontsize="small")
        ax.grid(alpha=0.25, which="both")
        if not ax.lines:
            ax.set_axis_off()
    return drawn


def curve(log: Sequence[Mapping[str, Any]], name: str, inner: str | None = None) -> tuple[list[float], list[float]]:
    """Images seen, in thousands, and the values measured then, or `inner` of a group; averaged where there are many.

    Lines of the log that lack the value are passed over.
    """
    import numpy as np

    found = [(record["images_seen"], (record.get(name) or {}).get(inner) if inner else record.get(name)) for record in log]
    pairs = np.array([(images / 1000, value) for images, value in found if value is not None]).reshape(-1, 2)
    means = [part.mean(axis=0) for part in np.array_split(pairs, min(_SMOOTH, len(pairs)) or 1) if len(part)]
    return [float(x) for x, _ in means], [float(y) for _, y in means]
