"""Where things lie: the recipes that come with the package, and the user's cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_INSTALLED, _CHECKOUT = (Path(__file__).parents[level] / "configs" for level in (0, 1))

CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
"""Folder of the recipes, presets and protocols: inside an installed package, or beside it in a checkout."""


@contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `target` when it is complete, and leaves nothing behind otherwise."""
    written, replaced = (target.with_name(f".{target.name}.{os.getpid()}.{word}") for word in ("new", "old"))
    written.mkdir(parents=True)
    try:
        yield written
        if target.exists():
            target.rename(replaced)
        written.rename(target)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def cache_folder() -> Path:
    """What can be made or fetched again: `$XDG_CACHE_HOME/cascade-diffusion`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cascade-diffusion"
