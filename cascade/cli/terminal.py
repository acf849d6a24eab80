"""The one place where lines are printed. Nothing in them reaches a terminal raw, whatever file it comes from."""

from __future__ import annotations

import os
import sys

from cascade.eval.text import printable


def put(*lines: object) -> None:
    """Print the output proper of a command, line by line."""
    print(*(printable(line) for line in lines), sep="\n", flush=True)


def put_raw(text: str) -> None:
    """Print what isn't for people: a script, or what draws in a terminal. Nothing in it may come from a file as it stands."""
    print(text, end="", flush=True)


def say(message: str) -> None:
    """A remark beside the output proper; a longer one in lines."""
    print(*(printable(line) for line in message.split("\n")), sep="\n", file=sys.stderr, flush=True)


def made_fit_for_text() -> None:
    """Let standard output and errors take any text: what they can't encode is written out, and what is closed swallows it.

    So no work is lost at its end because of where its result is told.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, so that no file of ours gets it and what is printed
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (to the end of the process)
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (as the other)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not one that a test has put in its place
            stream.reconfigure(errors="backslashreplace")
