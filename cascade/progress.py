"""How long work of several parts says how far it has come."""

from __future__ import annotations

from collections.abc import Callable

from cascade.files import Progress

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done ("features of the samples"), how much of it is done, and how much there is in all."""


def part(on_progress: OnProgress | None, title: str) -> Progress:
    """What a part of the work is given to say how far it has come."""

    def told(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(title, done, total)

    return told
