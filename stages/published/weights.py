"""Reading published weight files, and putting their tensors into a network."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cascade.stages.published import pickles
from cascade.stages.published.family import Family


def read(path: Path, family: Family) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors of a weight file by name, memory-mapped where the format allows; and the configuration that a pickle records.

    Raises:
        ValueError: if it is not a .pt or .pth file that holds a dict of tensors, a .safetensors file, or a .pkl file of a network
            of the family; nothing in it is ever run.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path), None
        except SafetensorError as error:
            raise ValueError(f"{path.name} can't be read as safetensors ({error}); was its download cut off?") from error
    if path.suffix in (".pt", ".pth"):
        return _read_torch(path), None
    if path.suffix == ".pkl" and family.pickled_classes:
        network = pickles.read(path)
        return pickles.tensors_of(network, family.pickled_classes), _recorded(network, path)
    kinds = ".pt, .pth or .safetensors" + (" or .pkl" if family.pickled_classes else "")
    raise ValueError(f"{path.name} is not a weight file of {family.name}: expected {kinds}")


def _recorded(network: pickles.Module, path: Path) -> dict[str, Any] | None:
    """The constructor's arguments that a pickle keeps, as a configuration; an infinite bound is no bound."""
    options = network.state.get("_init_kwargs") if isinstance(network.state, dict) else None
    if not isinstance(options, dict):
        return None
    options = {name: value for name, value in options.items() if value != math.inf}
    try:
        return {"init_kwargs": json.loads(json.dumps(options))}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name} records arguments of its network that are not plain values ({error})") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises whatever its many readers do
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path.name} was refused: it is damaged, or holds more than tensors ({reason})") from error
    if not isinstance(tensors, dict) or not all(isinstance(key, str) and isinstance(tensors[key], Tensor) for key in tensors):
        raise ValueError(
            f"{path.name} is not a plain dict of tensors; a training checkpoint has to be reduced to the network's weights first"
        )
    return dict(tensors)


def fill(network: nn.Module, tensors: Mapping[str, Tensor], source: str, dtype: torch.dtype | None) -> None:
    """Give a network the tensors of a file; without a change of number type they stay where they are, memory-mapped.

    The network may be on the meta device. Errors call the file `source`; `dtype` None = as stored.

    Raises:
        ValueError: if a tensor is missing, left over, of another shape, or not of floating-point numbers.
    """
    expected = {key: value.shape for key, value in network.state_dict().items()}
    problems = []
    if missing := [key for key in expected if key not in tensors]:
        problems.append(f"{len(missing)} of {len(expected)} tensors are missing ({_some(missing)})")
    if left_over := [key for key in tensors if key not in expected]:
        problems.append(f"{len(left_over)} are left over ({_some(left_over)})")
    shared = [key for key in expected if key in tensors]
    if wrong := [key for key in shared if tensors[key].shape != expected[key]]:
        shapes = f"{wrong[0]} is {list(tensors[wrong[0]].shape)} instead of {list(expected[wrong[0]])}"
        problems.append(f"{len(wrong)} have another shape ({shapes})")
    if problems:
        raise ValueError(
            f"{source} does not fit this network: {', and '.join(problems)}; is it of another family, or the configuration"
            " of another file?"
        )
    if wrong_type := [key for key in shared if not tensors[key].is_floating_point()]:
        raise ValueError(f"{source} holds {wrong_type[0]} as {tensors[wrong_type[0]].dtype}, expected floating-point numbers")
    values = tensors if dtype is None else {key: value.to(dtype) for key, value in tensors.items()}
    network.load_state_dict(values, assign=True)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:2]) + (", ..." if len(keys) > 2 else "")
