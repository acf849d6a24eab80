"""Where things lie: the recipes that come with the package, and the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

_INSTALLED, _CHECKOUT = (Path(__file__).parents[level] / "configs" for level in (0, 1))

CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
"""Folder of the recipes, presets and protocols: inside an installed package, or beside it in a checkout."""


def cache_folder() -> Path:
    """What can be made or fetched again: `$XDG_CACHE_HOME/cascade-diffusion`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cascade-diffusion"
