"""What is seen of long work: its progress on stderr, a bar on a terminal and a plain line now and then elsewhere; its report."""

from __future__ import annotations

import sys
import time
import warnings
from typing import TYPE_CHECKING, Any, Self

from cascade.cli.terminal import put, say
from cascade.eval.text import printable

if TYPE_CHECKING:
    from pathlib import Path

    from cascade.eval.report import Report

SECONDS_BETWEEN_LINES = 10.0

_BAR_WITHOUT_RATE = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}{postfix}]"


def silence_libraries() -> None:
    """Keep to ourselves what libraries remark on their own insides; errors are still raised."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")


def on_terminal() -> bool:
    """Whether progress is seen by a person."""
    return sys.stderr.isatty()


class Progress:
    """Shows how far something called `title` has come; what is counted is the plural `unit`. For use in a `with` statement."""

    def __init__(self, title: str, unit: str = "pictures") -> None:
        self.title, self.unit = title, unit
        self._bar: Any = None
        self._begun: tuple[float, int] | None = None
        self._shown, self._ended = 0.0, False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, total: int, note: str = "", rate: float | None = None) -> None:
        """Show that `done` of `total` are done, and a few words more, the `note`.

        `rate` is how many are done per second where the caller knows better than the clock here, which counts every pause. What
        is left is told by the clock.
        """
        now = time.monotonic()
        if self._begun is None:
            self._begun, self._shown = (now, done), now
        if on_terminal():
            self._update_bar(done, total, note, rate)
        elif (done >= total and not self._ended) or now - self._shown >= SECONDS_BETWEEN_LINES:
            self._shown, self._ended = now, done >= total
            say(self._line(done, total, note, rate, now))

    def say(self, message: str) -> None:
        """A remark that leaves the bar whole, if there is one."""
        if self._bar is None:
            say(message)
        else:
            self._bar.write(printable(message), file=sys.stderr)

    def _update_bar(self, done: int, total: int, note: str, rate: float | None) -> None:
        if self._bar is None:
            from tqdm import tqdm

            # no smoothing: what is left is told by the whole way so far, and a pause for a checkpoint says nothing of the rest
            options: dict[str, Any] = {"dynamic_ncols": True, "smoothing": 0}
            self._bar = tqdm(desc=printable(self.title), total=total, initial=done, unit=f" {self.unit}", **options)
        if rate is not None:
            self._bar.bar_format = _BAR_WITHOUT_RATE
            note = f"{rate:.3g} {self.unit}/s" + f", {note}" * bool(note)
        self._bar.set_postfix_str(printable(note), refresh=False)
        self._bar.update(done - self._bar.n)

    def _line(self, done: int, total: int, note: str, rate: float | None, now: float) -> str:
        parts = [f"{self.title}: {done:,} of {total:,} {self.unit}"]
        begun, first = self._begun or (now, done)
        if done > first and now > begun:
            by_clock = (done - first) / (now - begun)
            parts.append(f"{by_clock if rate is None else rate:.3g} a second")
            if done < total:
                parts.append(f"{duration((total - done) / by_clock)} left")
        return ", ".join(parts + [note] * bool(note))


class Bars:
    """A progress for each part of some work, one after another; for use in a `with` statement, as `on_progress` of a function."""

    def __init__(self) -> None:
        self.shown = Progress("")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shown.__exit__()

    def __call__(self, title: str, done: int, total: int) -> None:
        self.turn_to(title, "sets" if title.startswith("intervals") else "pictures")
        self.shown.update(done, total)

    def turn_to(self, title: str, unit: str) -> None:
        """Begin with the part of this title, if it is not the one that is shown."""
        if title != self.shown.title:
            self.shown.__exit__()
            self.shown = Progress(title, unit)


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def reach(host: str) -> str:
    """Whom what is served at this address is served to, in words."""
    return "to this machine alone" if host in ("127.0.0.1", "localhost", "::1") else "to everyone who can reach this machine"


def show(report: Report, folder: Path) -> None:
    """Print the table of a report that was written to `folder`, its notes, and where its page is."""
    from cascade.eval.report import table

    put(*table(report).split("\n"), *(f"- {note}" for note in report.notes), folder / "report.html")
