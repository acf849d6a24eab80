"""Training of one stage: recipe, data, objective, moving average, checkpoints and the loop."""

from stages.training.data import PictureSet, TrainingExamples
from stages.training.loop import train
from stages.training.recipe import Augmentation, Objective, Optimization, Phase, Recipe

__all__ = ["Augmentation", "Objective", "Optimization", "Phase", "PictureSet", "Recipe", "TrainingExamples", "train"]
