"""Where files lie and how they are written: whole or not at all. `complete` and `sha256` are those of `cascade.stages.files`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cascade.stages.files import complete, sha256

__all__ = ["CONFIGS", "Progress", "cache_folder", "complete", "complete_folder", "sha256", "write_text"]

_INSTALLED, _CHECKOUT = (Path(__file__).parents[level] / "configs" for level in (0, 1))

CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
"""Folder of the recipes, presets and protocols: inside an installed package, or beside it in a checkout."""

Progress = Callable[[int, int], None]
"""Told how far long work has come: called with (done, in all)."""


def cache_folder() -> Path:
    """What can be made or fetched again: `$XDG_CACHE_HOME/cascade-diffusion`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cascade-diffusion"


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all."""
    with complete(path) as file:
        file.write(text.encode())


@contextmanager
def complete_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of whatever is called `path` when it is complete, and leaves nothing otherwise.

    Until then it lies beside as `.NAME.PID.new`.
    """
    path = path.absolute()
    written, replaced = (path.with_name(f".{path.name}.{os.getpid()}.{word}") for word in ("new", "old"))
    written.mkdir(parents=True)
    try:
        yield written
        if path.exists():
            path.rename(replaced)
        written.rename(path)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
