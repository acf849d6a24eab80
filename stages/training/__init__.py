"""Training of one stage: recipe, data, objective, moving average, checkpoints and the loop."""

from cascade.stages.training.examples import PictureSet, TrainingExamples
from cascade.stages.training.loop import train
from cascade.stages.training.recipe import Augmentation, Data, Objective, Optimization, Phase, Recipe, Validation

__all__ = [
    "Augmentation",
    "Data",
    "Objective",
    "Optimization",
    "Phase",
    "PictureSet",
    "Recipe",
    "TrainingExamples",
    "Validation",
    "train",
]
