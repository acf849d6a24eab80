"""From a published weight file to the raw network, or to a stage of ours."""

import io
import json
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cascade.stages.base import BasePipeline
from cascade.stages.files import MOST_BYTES
from cascade.stages.published import pickle_scan, pickles
from cascade.stages.published.families import family_of, known
from cascade.stages.published.family import Config, Family
from cascade.stages.sr3 import SR3Pipeline


def load(family: str, weights: str | PathLike[str], config: Config | None = None) -> nn.Module:
    """The raw network of a published file, in float32, for evaluation; it is called as its family's module says.

    Args:
        family: A name in `cascade.stages.published.families.FAMILIES`.
        weights: Path of a .pt, .pth or .safetensors file, or a .pkl of EDM or EDM2. Nothing in it is ever run.
        config: The family's own options, as its project writes them; see the family's module. None for a published file that
            still has its name, or whose tensors tell it, and for a pickle.

    Raises:
        ValueError: if the family or an option is unknown, the file can't be read or asks for code, no configuration is known,
            or the tensors are not exactly those of the network.
    """
    return _read(family_of(family), Path(weights), config, torch.float32)[0]


def stage(
    family: str, weights: str | PathLike[str], config: Config | None = None, dtype: torch.dtype | None = torch.float32
) -> BasePipeline | SR3Pipeline:
    """A published file as a stage: its denoiser with the scheduler and settings that it was published with.

    The first arguments as for `load`; `dtype` is the number type of the weights, None = as stored in the file, which then stays
    memory-mapped. ValueError as for `load`, and for a classifier, which is not a stage.
    """
    record = family_of(family)
    if record.denoiser is None or record.sampler is None:
        raise ValueError(f"a {family} network makes no images: load it with published.guide, as the guide_unet of a stage")
    denoiser = _wrapped(record.denoiser, *_read(record, Path(weights), config, dtype))
    scheduler, settings = record.sampler(denoiser.config["published"])
    pipeline = BasePipeline if denoiser.config["low_res_size"] is None else SR3Pipeline
    return pipeline(denoiser, scheduler, **settings)


def guide(
    family: str, weights: str | PathLike[str], config: Config | None = None, dtype: torch.dtype | None = torch.float32
) -> Any:
    """A published file as the `guide_unet` of a stage: a classifier of noisy images, or the network of a weaker stage.

    Arguments and errors as for `stage`.
    """
    record = family_of(family)
    if record.classifier is None:
        return stage(family, weights, config, dtype).unet
    return _wrapped(record.classifier, *_read(record, Path(weights), config, dtype))


def _wrapped(kind: type[Any], network: nn.Module, config: Config) -> Any:
    """A raw network inside the class that stages are saved with."""
    with init_empty_weights():  # leaves the tables of noise levels alone, as torch.device("meta") would not
        wrapper = kind(published=config).eval()
    wrapper.network = network
    return wrapper


def _read(family: Family, path: Path, config: Config | None, dtype: torch.dtype | None) -> tuple[nn.Module, dict[str, Any]]:
    """The raw network of a file, for evaluation, and the configuration that it was built by."""
    if config is not None and not isinstance(config, Mapping):
        raise ValueError(f"config is a {type(config).__name__}, expected a mapping with the options of the {family.name} family")
    found = known(path.name) if config is None else None
    if found and found[0] is not family:
        raise ValueError(f"{path.name} is a {found[0].name} checkpoint, but the family asked for is {family.name}")
    content, recorded = _content_of(path, family)
    tensors, average = _chosen(content, family, (config or {}).get("average"), path.name)
    config = config or (found[1].config if found else recorded or _told_by_shapes(family, tensors))
    if not config:
        raise ValueError(
            f"{path.name} is not a published file of {family.name} known by name, and its weights don't tell all of its options;"
            f" give a config with {family.config_hint}"
        )
    kept = family.kept(config) | ({} if average is None else {"average": average})
    with torch.device("meta"):
        network = family.build(kept)
    _fill(network, family.own_tensors(tensors, kept), path.name, dtype)
    return network.eval().requires_grad_(False), kept


def _content_of(path: Path, family: Family) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What a weight file holds by name, memory-mapped where the format allows; and the configuration that a pickle records.

    ValueError unless it is a .pt or .pth file that holds a dict, a .safetensors file, or the family's .pkl file.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path), None
        except SafetensorError as error:
            raise ValueError(f"{path.name} can't be read as safetensors ({error}); was its download cut off?") from error
    if path.suffix in (".pt", ".pth"):
        return _read_torch(path, family), None
    if path.suffix == ".pkl" and family.pickled_classes:
        network = pickles.read(path)
        return pickles.tensors_of(network, family.pickled_classes), _recorded(network, path)
    kinds = ".pt, .pth or .safetensors" + (" or .pkl" if family.pickled_classes else "")
    raise ValueError(f"{path.name} is not a weight file of {family.name}: expected {kinds}")


def _recorded(network: pickles.Module, path: Path) -> dict[str, Any] | None:
    """The constructor's arguments that a pickle keeps, as a configuration; an infinite bound is no bound."""
    options = network.state.get("_init_kwargs")
    if not isinstance(options, dict):
        return None
    options = {name: value for name, value in options.items() if value != math.inf}
    try:
        return {"init_kwargs": json.loads(json.dumps(options))}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name} records arguments of its network that are not plain values ({error})") from error


_OLD_PICKLES = 5  # of torch's old format: its mark, its version, the machine, the content, and the names of the data behind


class _Options:
    """Stand-in for the options that a training checkpoint keeps, which say nothing that is used."""


def _read_torch(path: Path, family: Family) -> dict[str, Any]:
    options: list[Any] = [] if family.average is None else [(_Options, "argparse.Namespace")]
    try:
        _look_through(path)
        with torch.serialization.safe_globals(options):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises whatever its many readers do
        raise ValueError(f"{path.name} was refused: it is damaged, or holds more than tensors ({_reason(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}, expected a dict of tensors")
    return dict(content)


def _look_through(path: Path) -> None:
    """Raises pickle.UnpicklingError if a pickle in a file of torch's, of its new or its old format, asks for too much."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(_OLD_PICKLES):
                pickle_scan.check(file)
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.endswith("/data.pkl"):
                if member.file_size > MOST_BYTES:
                    raise pickle.UnpicklingError(f"its pickle has {member.file_size:,} bytes, expected at most {MOST_BYTES:,}")
                pickle_scan.check(io.BytesIO(archive.read(member)))


def _reason(error: Exception) -> str:
    """What torch says in its first line, or what the file asked for, without torch's advice to trust it."""
    text = str(error)
    if asked := re.search(r"GLOBAL (\S+)", text):
        return f"it asks for {asked[1][:200]}"
    if found := re.search(r"WeightsUnpickler error: ([^\n]*)", text):
        return found[1][:200].strip()
    return text.strip().split("\n")[0][:200] or type(error).__name__


def _is_state(value: Any) -> bool:
    """Whether it is a set of weights: tensors by name."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(key, str) and isinstance(one, Tensor) for key, one in value.items())


def _chosen(content: dict[str, Any], family: Family, asked: Any, source: str) -> tuple[dict[str, Tensor], str | None]:
    """The weights that a file holds, and their name where it holds several sets; `asked` names one, None = the family's average.

    ValueError if there is no such set, or it can't be told which one to take.
    """
    states = {str(name): value for name, value in content.items() if _is_state(value)}
    if _is_state(content):
        if asked is not None:
            raise ValueError(f"{source} holds one set of weights without a name, but the configuration asks for {asked!r} in it")
        return content, None
    held = ", ".join(repr(name) for name in states) or "none"
    if family.average is None:
        raise ValueError(
            f"{source} is not a plain dict of tensors (sets of weights in it: {held}); of a training checkpoint, give the"
            " network's weights"
        )
    name = family.average if asked is None else asked
    if name not in states:
        raise ValueError(
            f"{source} has no weights {name!r}, expected of {family.name}; those in it: {held}; name one of them as 'average' in"
            " a configuration"
        )
    return states[name], name


def _told_by_shapes(family: Family, tensors: Mapping[str, Tensor]) -> Config | None:
    """The published configuration whose network has exactly these tensors; None if there is none, or shapes can't tell."""
    for checkpoint in family.checkpoints if family.told_by_shapes else ():
        with torch.device("meta"):
            expected = {key: value.shape for key, value in family.build(checkpoint.config).state_dict().items()}
        if expected == {key: value.shape for key, value in family.own_tensors(tensors, checkpoint.config).items()}:
            return checkpoint.config
    return None


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], source: str, dtype: torch.dtype | None) -> None:
    """Give a network, which may be on the meta device, the tensors of a file, which errors call `source`.

    With `dtype` None they stay as stored and where they are, memory-mapped. ValueError if one is missing, left over, of another
    shape, or not of floating-point numbers.
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
        raise ValueError(f"{source} does not fit this network: {', and '.join(problems)}; is it of another family or config?")
    if wrong_type := [key for key in shared if not tensors[key].is_floating_point()]:
        raise ValueError(f"{source} holds {wrong_type[0]} as {tensors[wrong_type[0]].dtype}, expected floating-point numbers")
    values = tensors if dtype is None else {key: value.to(dtype) for key, value in tensors.items()}
    network.load_state_dict(values, assign=True)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:2]) + (", ..." if len(keys) > 2 else "")
