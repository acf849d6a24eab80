"""What goes wrong in a process that reads pictures, in one sentence of the process that trains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def told_in_a_sentence() -> Iterator[None]:
    """Around whatever takes batches from a DataLoader: torch hands over the traceback of a worker as the text of its error.

    Raises RuntimeError if a worker was killed, and an error of its own kind, or RuntimeError, for what one raised.
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        if isinstance(error, (ConnectionError, EOFError)) or ("DataLoader worker" in text and "exited unexpectedly" in text):
            raise RuntimeError(
                "a process that reads the pictures was killed, as the system does when memory is short; with fewer workers less"
                " is needed"
            ) from error
        if not re.match(r"Caught \w+ in DataLoader worker process", text):
            raise
        last = text.strip().splitlines()[-1]
        kind = next((one for one in (OSError, ValueError) if isinstance(error, one)), RuntimeError)
        raise kind(f"a process that reads the pictures failed: {last}") from error
