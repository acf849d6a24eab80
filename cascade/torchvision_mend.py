"""torchvision made importable beside a torch that it was not built for, before anyone imports it.

The wheel on PyPI is built for CUDA. Beside a CPU torch it can't load its compiled operators, and its import fails while it
describes two of them; diffusers and clean-fid, which import torchvision where it is installed, fail with it. The two are declared
here without an implementation: networks and transforms then work, and `ops.nms` raises when it is called.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

_declared: list[Any] = []  # libraries of operators; what is defined in one lives as long as it


class Mender(MetaPathFinder):
    """Finds no module; asked for torchvision, it declares what its import lacks, once. So it costs nothing until then."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_operators()


def _declare_operators() -> None:
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    import torch

    if torch.version.cuda is not None:
        return
    try:
        torch.ops.load_library(str(next(Path(found.origin).parent.glob("_C.*"))))  # as its import does
    except (OSError, StopIteration):
        _declared.append(torch.library.Library("torchvision", "FRAGMENT"))
        for operator in ("nms", "qnms"):
            _declared[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
