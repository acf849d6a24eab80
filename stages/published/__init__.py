"""Other people's published checkpoints as stages of ours."""

from cascade.stages.published.conversion import convert
from cascade.stages.published.loading import guide, load, stage

__all__ = ["convert", "guide", "load", "stage"]
