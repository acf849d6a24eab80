"""Cascaded image generation in pixel space: the public face, loaded on first use so that `import cascade` needs no torch."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cascade.torchvision_mend import Mender

if TYPE_CHECKING:
    from cascade.composed import compose as compose
    from cascade.measure.benchmark import benchmark as benchmark
    from cascade.measure.evaluation import evaluate as evaluate
    from cascade.measure.schedule_search import search_schedule as search_schedule
    from cascade.onnx_export import export_onnx as export_onnx
    from cascade.pipeline import CascadePipeline as CascadePipeline
    from cascade.runs.run import sample_run as sample_run
    from cascade.stage_sampling import StageSampling as StageSampling
    from cascade.stages.base import BasePipeline as BasePipeline
    from cascade.stages.regression import RegressionPipeline as RegressionPipeline
    from cascade.stages.sr3 import SR3Pipeline as SR3Pipeline
    from cascade.training.fit import fit as fit
    from cascade.training.recipes import load_recipe as load_recipe
    from cascade.training.stage import train_stage as train_stage

    __version__: str

_HOMES = {
    "BasePipeline": "cascade.stages.base",
    "CascadePipeline": "cascade.pipeline",
    "RegressionPipeline": "cascade.stages.regression",
    "SR3Pipeline": "cascade.stages.sr3",
    "StageSampling": "cascade.stage_sampling",
    "benchmark": "cascade.measure.benchmark",
    "compose": "cascade.composed",
    "evaluate": "cascade.measure.evaluation",
    "export_onnx": "cascade.onnx_export",
    "fit": "cascade.training.fit",
    "load_recipe": "cascade.training.recipes",
    "sample_run": "cascade.runs.run",
    "search_schedule": "cascade.measure.schedule_search",
    "train_stage": "cascade.training.stage",
}

__all__ = [*_HOMES, "__version__"]

sys.meta_path.insert(0, Mender())


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value = version("cascade-diffusion")
        except PackageNotFoundError:  # a checkout that was never installed
            value = "unknown"
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
