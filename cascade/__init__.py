"""Cascaded image generation in pixel space: the public face, loaded on first use so that `import cascade` needs no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cascade.pipeline import CascadePipeline
    from cascade.stages.base import BasePipeline
    from cascade.stages.regression import RegressionPipeline
    from cascade.stages.sr3 import SR3Pipeline

    __version__: str

__all__ = ["BasePipeline", "CascadePipeline", "RegressionPipeline", "SR3Pipeline", "__version__"]

_HOMES = {
    "BasePipeline": "cascade.stages.base",
    "CascadePipeline": "cascade.pipeline",
    "RegressionPipeline": "cascade.stages.regression",
    "SR3Pipeline": "cascade.stages.sr3",
}


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
