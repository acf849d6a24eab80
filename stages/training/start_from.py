"""Whether a network fits saved weights, and the weights of a saved stage as the beginning of a training run."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from cascade.stages.saved import ModelError, load_network, read_json
from cascade.stages.unet import UNet

FREE = ("dropout", "coarse_below", "num_classes", "null_class")
"""Settings in which a run may differ from the stage that it begins with: they change no weight, or only the classes'."""
CLASSES = "class_embedding.weight"
DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(UNet.__init__).parameters.items()}
"""Of a network's settings."""


def settings_of(network: UNet) -> dict[str, Any]:
    """The network's configuration as JSON gives it back."""
    return _plain({key: value for key, value in network.config.items() if not key.startswith("_")})


def difference(saved: Mapping[str, Any], network: UNet, free: Collection[str] = ()) -> str | None:
    """The first setting, `free` ones aside, that `network` does not share with the saved configuration; None if there is none.

    A setting that came later than the saved file stands at its default there.
    """
    for key, value in settings_of(network).items():
        before = _plain(saved[key] if key in saved else DEFAULTS[key])
        if key not in free and before != value:
            return f"{key} is {before} there and {value} here"
    return None


def take_weights(network: UNet, stage: Path) -> str:
    """Give a new network the weights of a saved stage; returns a sentence on what was taken.

    Where the classes are others in number, their embedding keeps its random start. Equal numbers are taken for equal classes.
    Raises ValueError if there is no such stage, or its network is another one; it names the first setting that differs.
    """
    folder = stage / "unet"
    try:
        saved = read_json(folder / "config.json")
    except ModelError as error:
        raise ValueError(f"start_from is {stage}, expected the folder of a saved stage, with unet/config.json in it") from error
    kind = saved.get("_class_name")
    if kind != UNet.__name__:
        raise ValueError(f"start_from is {stage}, whose network is a {kind}; a run can start from a {UNet.__name__} only")
    if differs := difference(saved, network, FREE):
        raise ValueError(f"the run can't start from {stage}: network.{differs}; they must be alike")
    weights = load_network(UNet, folder, torch.float32, None).state_dict()
    own = network.state_dict()
    theirs, ours = weights.pop(CLASSES, None), own.get(CLASSES)
    same = theirs is None if ours is None else theirs is not None and theirs.shape == ours.shape
    network.load_state_dict(weights | ({} if ours is None else {CLASSES: theirs if same else ours}))
    classes = "" if same else f"; it has {saved['num_classes'] or 'no'} classes, so what it learned of them is left out"
    return f"starts from the weights of {stage}{classes}"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
