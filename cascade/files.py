"""Where files lie and how they are written: whole or not at all. What is not defined here is of `cascade.stages.files`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cascade.stages.files import PARTIAL, Batch, complete, complete_folder, held, read_text, sha256

__all__ = [
    "CONFIGS", "PARTIAL", "Batch", "Progress", "cache_folder", "complete", "complete_folder", "held", "read_text", "sha256",
    "write_text",
]  # fmt: skip

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
