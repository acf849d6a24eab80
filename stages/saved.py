"""A stage on disk: one folder, as diffusers saves a pipeline. Nothing in a file is executed or unpickled.

The top of this module needs no torch, so that a command can read what a model is before it loads it.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade.stages.files import read_text

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

HUB_ID = r"\w[\w.-]*/\w[\w.-]*"
INDEX = "model_index.json"

_PIPELINES = {"BasePipeline": "base", "SR3Pipeline": "sr3", "RegressionPipeline": "regression"}
MOST_PARTS, MOST_COUNT = 1_000, 10_000_000
"""Layers of a level, and anything else that the configuration of a network or a scheduler counts or measures."""

_PARTS = r"^blocks$|layers_per_block$|^num_(res_)?(blocks|layers)$|^num_res|depth$"

_UNSAFE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py")


class ModelError(ValueError):
    """A model that can't be found or used as it lies there; the message is one clear sentence."""


def load_stage(
    folder: Path,
    dtype: torch.dtype | str | None = "float32",
    variant: str | None = None,
    wanted: type[Any] | None = None,
    **given: Any,
) -> Any:
    """The pipeline that a folder holds, on the CPU, for evaluation.

    Args:
        folder: With `model_index.json`, which names the class: one of ours, or a pipeline of diffusers.
        dtype: Number type of the weights, whatever it is on disk; "bfloat16" stands for `torch.bfloat16`. None = as on
            disk.
        variant: Word in the names of the weight files (`diffusion_pytorch_model.fp16.safetensors`); None = files without one.
        wanted: A class that it has to be, or to be derived from; where it is itself derived from the class named, it is made
            instead. None = any.
        **given: Components and settings in place of those in the folder.

    Raises:
        ModelError: if the stage is incomplete, damaged, of another class, or would execute or unpickle something.
        ValueError: if `dtype` is not a number type, or the class doesn't take something that is given.
    """
    path, dtype = folder / INDEX, None if dtype is None else number_type(dtype)
    unsafe = next((path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _UNSAFE), None)
    if unsafe is not None:
        raise ModelError(f"{unsafe} could execute code when it is loaded, so it is refused; store weights as safetensors")
    made = _class_for(folder, wanted)
    takes = list(inspect.signature(made).parameters)
    if unknown := [name for name in given if name not in takes]:
        raise ValueError(f"{made.__name__}.from_pretrained doesn't take {unknown[0]!r}; of a stage, it takes {', '.join(takes)}")
    values = {name: value for name, value in read_json(path).items() if not name.startswith("_")} | given
    for name, value in values.items():
        if name not in given and _is_component(value):
            values[name] = _load_component(folder, name, value[0], value[1], dtype, variant)
    with damaged(path):
        return made(**values)


def class_named(name: Any, what: str) -> type[DiffusionPipeline]:
    """A class of ours or of diffusers by its name, and nothing else; `what` bears it, for the message.

    Raises:
        ModelError: if there is no such class.
    """
    import diffusers

    if name in _PIPELINES:
        return getattr(import_module(f"cascade.stages.{_PIPELINES[name]}"), name)
    found: Any = getattr(diffusers, str(name), None)
    if not _is_subclass(found, diffusers.DiffusionPipeline) or found is diffusers.DiffusionPipeline:
        raise ModelError(f"{what} is a {name!r}, expected {', '.join(_PIPELINES)} or the name of a diffusers pipeline")
    return found


def _class_for(folder: Path, wanted: type[Any] | None) -> type[Any]:
    name = read_json(folder / INDEX).get("_class_name")
    if wanted is not None and name == wanted.__name__:
        return wanted
    found = class_named(name, f"the pipeline in {folder / INDEX}")
    if wanted is None or issubclass(found, wanted):
        return found
    if issubclass(wanted, found):
        return wanted
    right = found.__name__
    raise ModelError(f"the stage in {folder} is of class {right}, not {wanted.__name__}: load it with {right}.from_pretrained")


def find_stage(name_or_path: Any, **options: Any) -> Path:
    """The folder of a stage.

    Args:
        name_or_path: A folder, or the id of a model on the Hugging Face Hub.
        **options: As `download` takes them.

    Raises:
        ModelError: if there is no such stage, or it can't be downloaded.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if not path.exists() and re.fullmatch(HUB_ID, name) and not path.parent.is_dir():
        path = download(name, **options)
    if not path.is_dir():
        what = "is a file" if path.exists() else "is not there, and not the id of a model on the Hugging Face Hub"
        raise ModelError(f"stage {name!r} {what}; expected the folder of a stage")
    stages = ", ".join(one.parent.name for one in sorted(path.glob(f"*/{INDEX}")))
    if stages and not (path / INDEX).is_file():
        raise ModelError(f"{path} is not one stage, but holds the stages {stages}; load it as a cascade, or one of them")
    return path


def download(hub_id: str, **options: Any) -> Path:
    """The folder in the cache to which a model on the Hugging Face Hub is downloaded: its json, safetensors and md files only.

    Args:
        hub_id: "someone/something".
        **options: `revision`, `cache_dir`, `local_files_only`, `token` of `huggingface_hub.snapshot_download`.

    Raises:
        ModelError: if it can't be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.md"], **options))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"model {hub_id!r} is not a local folder, and the Hugging Face Hub can't be reached to look for it"
        ) from error
    except Exception as error:  # the Hub's own errors, those of the network library, and OSError
        raise ModelError(f"model {hub_id!r} could not be downloaded from the Hugging Face Hub ({reason(error)})") from error


def number_type(dtype: torch.dtype | str) -> torch.dtype:
    """A floating-point number type, by itself or by its name: "bfloat16" or "torch.bfloat16".

    Raises:
        ValueError: if there is none of this name.
    """
    import torch

    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype is {dtype!r}, expected a floating-point number type, such as torch.bfloat16 or 'bfloat16'")
    return found


def _is_component(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(part is None or isinstance(part, str) for part in value)


def _load_component(
    home: Path, name: str, library: str | None, class_name: str | None, dtype: torch.dtype | None, variant: str | None
) -> Any:
    """A stage's network or scheduler, whose class is ours or diffusers' own; None where it is left out."""
    import diffusers

    if library is None or class_name is None:
        return None
    module: Any = diffusers if library == "diffusers" else None
    ours = f"cascade.{library.removeprefix('cascade.')}"  # models saved before 0.2 have "stages.unet"
    if ours == "cascade.stages.unet" or ours.startswith("cascade.stages.published."):
        with damaged(home / INDEX):
            module = import_module(ours)
    found: Any = getattr(module, class_name, None)
    if _is_subclass(found, diffusers.SchedulerMixin):
        return _load_scheduler(found, home / name / "scheduler_config.json")
    if not _is_subclass(found, diffusers.ModelMixin):
        asked = f"{library}.{class_name}"
        raise ModelError(f"{home / INDEX} asks for {asked} as its {name}, which is neither ours nor diffusers' own")
    return load_network(found, home / name, dtype, variant)


def _is_subclass(found: Any, of: type) -> bool:
    return isinstance(found, type) and issubclass(found, of)


def _load_scheduler(scheduler: Any, path: Path) -> Any:
    """A scheduler of diffusers from its config."""
    with damaged(path):
        config = read_json(path)
        _check_counts(config)
        own = {name: value for name, value in config.items() if not name.startswith("_")}
        if own.keys() <= inspect.signature(scheduler).parameters.keys():
            return scheduler(**own)
        return scheduler.from_config(config)  # imports all others that it is compatible with, to tell whose the rest is


def load_network(network: Any, folder: Path, dtype: torch.dtype | None, variant: str | None) -> Any:
    """A network of this class with all its weights and no others; its random initial weights are never made.

    Arguments and errors as of `load_stage`; `folder` is that of the network.
    """
    from accelerate import init_empty_weights
    from diffusers.models.modeling_utils import no_init_weights
    from safetensors.torch import load_file

    path = folder / "config.json"
    config = read_json(path)
    if config.get("_class_name") != network.__name__:
        raise ModelError(f"{path} describes a {config.get('_class_name')}, expected the {network.__name__} of model_index.json")
    with damaged(path), init_empty_weights(), no_init_weights():
        _check_counts(config)
        model = network.from_config(config)
    weights: dict[str, torch.Tensor] = {}
    for path in _weight_files(folder, variant):
        with damaged(path):
            # Copied even where the type is right: load_file maps the file, whose later changes would reach the model, and whose
            # odd addresses change rounding.
            for name, value in load_file(path).items():
                weights[name] = value.to((dtype if value.is_floating_point() else None) or value.dtype, copy=True)
    _check_weights(folder, {name: tuple(value.shape) for name, value in model.state_dict().items()}, weights)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _check_counts(value: Any, key: str = "") -> None:
    """Raise ValueError for numbers of which no network or scheduler has so many, before something is made for each of them."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_counts(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            _check_counts(inner, key)
    elif isinstance(value, (int, float)):
        most = MOST_PARTS if re.search(_PARTS, key) else MOST_COUNT
        if math.isfinite(value) and abs(value) > most:
            raise ValueError(f"{key} is {value:g}, expected at most {most:,}")


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors files of a network; several where its weights are split, as an index beside them says."""
    word = "" if variant is None else f".{variant}"
    index = folder / f"diffusion_pytorch_model.safetensors.index{word}.json"
    files = [folder / f"diffusion_pytorch_model{word}.safetensors"]
    if index.is_file():
        with damaged(index):
            files = [folder / Path(name).name for name in sorted(set(read_json(index)["weight_map"].values()))]
    for path in files:
        if not path.is_file():
            raise ModelError(f"the model is incomplete: {path} is missing")
    return files


def _check_weights(folder: Path, expected: dict[str, tuple[int, ...]], weights: dict[str, torch.Tensor]) -> None:
    import torch

    for name, shape in expected.items():
        if name not in weights:
            raise ModelError(f"the weights in {folder} are incomplete: {name} is missing")
        if (got := tuple(weights[name].shape)) != shape:
            raise ModelError(f"the weights in {folder} don't fit its config.json: {name} has shape {got}, expected {shape}")
        total = weights[name].sum(dtype=torch.float32)  # far cheaper than a look at each value, and finite for nearly all weights
        if not total.isfinite() and not weights[name].isfinite().all():
            raise ModelError(f"the weights in {folder} are damaged: {name} holds values that are not numbers (NaN or infinite)")
    if unexpected := sorted(weights.keys() - expected):
        raise ModelError(f"the weights in {folder} don't fit its config.json: it has no place for {unexpected[0]}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model.

    Raises:
        ModelError: if the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise ModelError(f"the model is incomplete: {path} is missing")
    with damaged(path):
        values = json.loads(read_text(path))
        if not isinstance(values, dict):
            raise TypeError(f"it holds a {type(values).__name__}, expected an object")
    return values


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turns whatever a library says of a file's contents into one sentence, a `ModelError`."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path} is damaged or can't be used ({reason(error)})") from error


def reason(error: Exception) -> str:
    """The first line of what a library says went wrong."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:300]}"
