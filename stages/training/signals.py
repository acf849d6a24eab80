"""Ending a run in good order: Ctrl-C, and the SIGTERM that clusters send before they end a job, wait for the step to finish."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Within a `with` statement the first Ctrl-C or SIGTERM only turns `asked` to True; a second one does what it always does.

    Outside the main thread, which alone may handle signals, it changes nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[number])


def leave_signals_to_the_trainer(worker: int) -> None:
    """For a data worker: Ctrl-C and a cluster's SIGTERM reach it too, but it is the trainer that ends it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
