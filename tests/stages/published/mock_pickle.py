"""Writes network pickles in the layout of EDM's and EDM2's snapshots, from the tensors of a reference network."""

import io
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What each object of the published networks is called, by the last part of its name.
EDM_CLASSES = {"": "EDMPrecond", "model": "DhariwalUNet", "map_noise": "PositionalEmbedding"}
EDM2_CLASSES = {"": "Precond", "unet": "UNet", "emb_fourier": "MPFourier", "logvar_fourier": "MPFourier"}


class Persistent:
    """Pickles as a call of the function that would execute `module_src`."""

    def __init__(self, class_name: str, state: Mapping[str, Any], module_src: str) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": module_src, "class_name": class_name, "state": dict(state)}

    def __reduce__(self) -> Any:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)  # type: ignore[attr-defined]


@contextmanager
def source_modules() -> Any:
    """The modules that the names in a pickle refer to, while it is written."""

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("the reader must not call this")

    class EasyDict(dict):  # type: ignore[type-arg]
        pass

    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
    for module, thing in ((persistence, _reconstruct_persistent_obj), (util, EasyDict)):
        thing.__module__, thing.__qualname__ = module.__name__, thing.__name__
        setattr(module, thing.__name__, thing)
    names = {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": persistence}
    names |= {"dnnlib": types.ModuleType("dnnlib"), "dnnlib.util": util}
    sys.modules.update(names)
    try:
        yield EasyDict
    finally:
        for name in names:
            del sys.modules[name]


def class_of(path: str, family: str, is_block: bool, has_buffers_only: bool) -> str:
    name = path.rsplit(".", 1)[-1]
    if family == "edm2":
        return EDM2_CLASSES.get(path.removeprefix("unet."), "Block" if is_block else "MPConv")
    if is_block:
        return EDM_CLASSES.get(path, "UNetBlock")
    if path in EDM_CLASSES:
        return EDM_CLASSES[path]
    return "GroupNorm" if "norm" in name else "Linear" if name.startswith(("map_", "affine")) else "Conv2d"


def tree(tensors: Mapping[str, Tensor], family: str, config: Mapping[str, Any], path: str, source: str) -> Any:
    """The object at `path` with all that lies below it."""
    prefix = f"{path}." if path else ""
    below = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    own = {key: value for key, value in below.items() if "." not in key}
    buffers = {key: value for key, value in own.items() if key in ("resample_filter", "freqs", "phases")}
    parameters = {key: nn.Parameter(value, requires_grad=False) for key, value in own.items() if key not in buffers}
    children = dict.fromkeys(key.split(".")[0] for key in below if "." in key)
    modules = {name: tree(tensors, family, config, prefix + name, source) for name in children}
    state: dict[str, Any] = {"training": False, "_parameters": OrderedDict(parameters), "_buffers": OrderedDict(buffers)}
    state |= {"_backward_hooks": OrderedDict(), "_is_full_backward_hook": None, "_modules": OrderedDict(modules)}
    name = path.rsplit(".", 1)[-1]
    if name in ("enc", "dec"):
        container = nn.ModuleDict()
        container.__dict__.clear()
        container.__dict__.update(state)
        return container
    if name == "conv0" and family == "edm":
        state["_buffers"].setdefault("resample_filter", None)
    if not path:
        state |= {"_init_args": (), "_init_kwargs": dict(config["init_kwargs"]), "loss_scale": np.float64(0.5)}
    return Persistent(class_of(path, family, bool(children), not parameters), state, source)


def write(path: Path, tensors: Mapping[str, Tensor], family: str, config: Mapping[str, Any], source: str = "x = 1") -> None:
    """Write `tensors` as the network `ema` of a snapshot whose embedded source text is `source`."""
    with source_modules() as easy_dict:
        loss = Persistent("EDMLoss", {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5}, source)
        content = {"ema": tree(tensors, family, config, "", source), "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": {}}
        if family == "edm2":
            content = easy_dict(content, dataset_kwargs=easy_dict(resolution=16))
        file = io.BytesIO()
        pickle.Pickler(file, protocol=4).dump(content)
    path.write_bytes(file.getvalue())


def as_published(tensors: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    return {key: value.float() if family == "edm" else value.to(torch.float16) for key, value in tensors.items()}
