"""Other people's published checkpoints as stages of ours."""

from stages.published.conversion import convert
from stages.published.loading import load, stage

__all__ = ["convert", "load", "stage"]
