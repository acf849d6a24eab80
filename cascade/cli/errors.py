"""The one place where errors become one sentence on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from cascade.cli.terminal import made_fit_for_text, say
from cascade.eval.text import printable

DONE, FAILED, WRONG = 0, 1, 2
"""Exit codes: done; it failed; the request was wrong."""

MOST = 500
"""Characters of a sentence on an error, whatever a file has put into it."""

TRACEBACK = "CASCADE_TRACEBACK"
"""Environment variable for developers: set, errors show where they came from."""


def guarded(program: str, action: Callable[[], None]) -> int:
    """Run a command, on an error say in one sentence on stderr what went wrong, and return the exit code."""
    made_fit_for_text()
    try:
        action()
        sys.stdout.flush()
        return DONE
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get(TRACEBACK):
            raise
        if isinstance(error, BrokenPipeError):  # the reader, as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush goes nowhere
            return FAILED
        code, sentence = verdict(error)
        from cascade.presets import MissingFiles

        most = MOST + (len(sentence) if isinstance(error, MissingFiles) else 0)  # whose text is ours alone
        say(printable(" ".join(f"{program}: {sentence[: 2 * most]}".split()), most))
        return code


def verdict(error: BaseException) -> tuple[int, str]:
    """Exit code and sentence for an error; the sentence may have line breaks."""
    if isinstance(error, ValueError):
        return WRONG, str(error)
    if isinstance(error, KeyboardInterrupt):
        return FAILED, "stopped; nothing half-written is left"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's own, not imported here
        return FAILED, "out of memory; try a smaller --batch-size or --size"
    if isinstance(error, OSError) and error.strerror:
        return FAILED, f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, ModuleNotFoundError):
        return FAILED, f"the package {error.name} is not installed; see README.md for what this command needs"
    if isinstance(error, (OSError, RuntimeError, ArithmeticError)):
        return FAILED, str(error) or type(error).__name__
    return FAILED, f"internal error, {type(error).__name__}: {error}; please report it with what {TRACEBACK}=1 shows"
