"""Training of one stage: recipe, data, objective, moving average, checkpoints and the loop."""

from stages.training.data import PictureSet, TrainingExamples
from stages.training.loop import train
from stages.training.recipe import Augmentation, Data, Objective, Optimization, Phase, Recipe, Snapshots, Validation

__all__ = [
    "Augmentation",
    "Data",
    "Objective",
    "Optimization",
    "Phase",
    "PictureSet",
    "Recipe",
    "Snapshots",
    "TrainingExamples",
    "Validation",
    "train",
]
