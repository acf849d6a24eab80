"""Models on disk: names to folders, `cascade.json`, and stage folders to pipelines.

Nothing in a file is executed or unpickled. The top of this module needs no torch, so that a command can read what a model is
before it loads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from cascade import presets
from cascade.classes import Vocabulary, imagenet

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline, ModelMixin

FORMAT = 1
MANIFEST = "cascade.json"
CARD = "README.md"
SHIPPED = {"emoji": Path(__file__).parent / "assets" / "emoji"}

_PLAIN = r"\w[\w.-]*"
_UNSAFE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py")
_IMAGENET = {"vocabulary": "imagenet"}
_WEIGHTS = "diffusion_pytorch_model.safetensors"


class ModelError(ValueError):
    """A model that can't be found or used as it lies there; the message is one clear sentence."""


@dataclass(frozen=True)
class StageEntry:
    """A stage in `cascade.json`.

    name: What it is called.
    folder: Its folder beside `cascade.json`.
    pipeline: "BasePipeline", "SR3Pipeline", "RegressionPipeline", or the name of a diffusers pipeline.
    size: Side of the images that it makes.
    low_res_size: Side of the images that it refines; None for the base.
    """

    name: str
    folder: str
    pipeline: str
    size: int
    low_res_size: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The contents of `cascade.json`: what a cascade is, without its weights.

    name: Name of the model.
    classes: What its classes are called; None where they have no names.
    stages: In the order in which they run.
    default_size: Side of the images that are made where nothing else is asked for; None = those of the last stage.
    """

    name: str
    classes: Vocabulary | None
    stages: tuple[StageEntry, ...]
    default_size: int | None = None

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of the cascade in `folder`, as `resolve` returns it.

        Raises:
            ModelError: if there is none, or it can't be understood.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise ModelError(f"{folder} is not a cascade, or an incomplete one: it has no {MANIFEST}")
        values = _read_json(path)
        if values.get("format") != FORMAT:
            raise ModelError(f"{path} has format {values.get('format')!r}, but this version of cascade reads format {FORMAT}")
        with _damaged(path):
            stages = tuple(StageEntry(**entry) for entry in values["stages"])
            manifest = cls(str(values["name"]), _classes_from_json(values["classes"]), stages, values.get("default_size"))
        if not stages:
            raise ModelError(f"{path} has no stages")
        for stage in stages:
            if not all(re.fullmatch(_PLAIN, str(part)) for part in (stage.name, stage.folder, stage.pipeline)):
                raise ModelError(f"{path} has a stage {stage.name!r} in folder {stage.folder!r}, expected names without a path")
            if type(stage.size) is not int or type(stage.low_res_size) not in (int, type(None)):
                raise ModelError(f"{path} has a stage of size {stage.size!r} from {stage.low_res_size!r}, expected whole numbers")
        if manifest.default_size not in (None, *(stage.size for stage in stages)):
            raise ModelError(f"{path} has default_size {manifest.default_size!r}, expected the size of one of its stages")
        return manifest

    def up_to(self, size: int | None) -> Manifest:
        """The cascade that ends with the stage that makes images of side `size`; None = all of it.

        Raises:
            ValueError: if no stage does.
        """
        if size is None:
            return self
        sizes = [stage.size for stage in self.stages]
        if size not in sizes:
            raise ValueError(f"no stage of {self.name!r} makes {size}x{size} images; choose from {', '.join(map(str, sizes))}")
        stages = self.stages[: sizes.index(size) + 1]
        return replace(self, stages=stages, default_size=min(size, self.default_size or size))

    def write(self, folder: Path) -> None:
        """Write `cascade.json` into `folder`."""
        values = {
            "format": FORMAT,
            "name": self.name,
            "classes": _classes_to_json(self.classes),
            "stages": [vars(stage) for stage in self.stages],
            "default_size": self.default_size,
        }
        (folder / MANIFEST).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


class HubOptions(TypedDict, total=False):
    """How a model is looked up on the Hugging Face Hub; arguments of `snapshot_download`."""

    revision: str | None
    cache_dir: str | Path | None
    local_files_only: bool
    token: str | bool | None


def resolve(name_or_path: str | Path, **hub: Unpack[HubOptions]) -> Path:
    """The folder of a model.

    Args:
        name_or_path: The name of a shipped model ("emoji") or a preset, a folder (./emoji for one of a shipped model's name), or
            the id of a model on the Hugging Face Hub ("someone/something"), of which only json, safetensors and md files are
            downloaded.
        **hub: For a model on the Hub.

    Raises:
        ModelError: if there is no such model, or it can't be downloaded.
        ValueError: if files of a preset are missing.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name in SHIPPED:
        if not (SHIPPED[name] / MANIFEST).is_file():
            raise ModelError(
                f"the shipped model {name!r} is missing from this installation: there is no {SHIPPED[name] / MANIFEST}"
            )
        return SHIPPED[name]
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"model {name!r} is a file, expected the folder of a cascade")
    if name in presets.names():
        return presets.assembled(name)
    if re.fullmatch(f"{_PLAIN}/{_PLAIN}", name) and not path.parent.is_dir():
        return _download(name, hub)
    raise ModelError(
        f"there is no model {name!r}: it is not a folder, and the models known by name are"
        f" {', '.join([*SHIPPED, *presets.names()])}"
    )


def upload(folder: Path, repo_id: str, **options: Any) -> str:
    """Upload a model's folder to the Hugging Face Hub; returns its address there.

    Args:
        folder: Of the model.
        repo_id: "someone/something".
        **options: `private` and `token` of the repository; `commit_message`, `revision`, `create_pr` of the upload.

    Raises:
        ConnectionError: if the Hub can't be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=options.pop("token", None))
    try:
        repository = api.create_repo(repo_id, private=options.pop("private", None), exist_ok=True).repo_id
        return str(api.upload_folder(folder_path=folder, repo_id=repository, **options))
    except (HfHubHTTPError, OSError) as error:
        raise ConnectionError(f"{repo_id!r} could not be uploaded to the Hugging Face Hub ({_reason(error)})") from error


def _download(hub_id: str, options: HubOptions) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.md"], **options))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"model {hub_id!r} is not a local folder, and the Hugging Face Hub can't be reached to look for it"
        ) from error
    except Exception as error:  # the Hub's own errors, those of the network library, and OSError
        raise ModelError(f"model {hub_id!r} could not be downloaded from the Hugging Face Hub ({_reason(error)})") from error


def load_stage(folder: Path, entry: StageEntry, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline of a stage, on the CPU, its weights as `dtype` whatever number type they are stored in.

    Args:
        folder: The cascade's.
        entry: Which of its stages.

    Raises:
        ModelError: if the stage is incomplete, damaged, not what `cascade.json` says, or would execute or unpickle something.
    """
    pipeline_class, home = _pipeline_class(folder, entry), folder / entry.folder
    if not home.is_dir():
        raise ModelError(f"{folder} is incomplete: it lacks the folder {entry.folder!r} of stage {entry.name!r}")
    unsafe = next((path for path in sorted(home.rglob("*")) if path.suffix.lower() in _UNSAFE), None)
    if unsafe is not None:
        raise ModelError(f"{unsafe} could execute code when it is loaded, so it is refused; store weights as safetensors")
    path = home / "model_index.json"
    values = {name: value for name, value in _read_json(path).items() if name == "_class_name" or not name.startswith("_")}
    if values.pop("_class_name", None) != entry.pipeline:
        raise ModelError(f"{path} does not describe the {entry.pipeline} that {MANIFEST} names")
    for name, value in values.items():
        if _is_component(value):
            values[name] = _load_component(home, name, value[0], value[1], dtype)
    with _damaged(path):
        return pipeline_class(**values)


def _pipeline_class(folder: Path, entry: StageEntry) -> type[DiffusionPipeline]:
    """The class of a stage: one of ours or of diffusers, and nothing else."""
    import diffusers

    from cascade.stages.base import BasePipeline
    from cascade.stages.regression import RegressionPipeline
    from cascade.stages.sr3 import SR3Pipeline

    own = {one.__name__: one for one in (BasePipeline, SR3Pipeline, RegressionPipeline)}
    found: Any = own.get(entry.pipeline) or getattr(diffusers, entry.pipeline, None)
    if not _is_subclass(found, diffusers.DiffusionPipeline) or found is diffusers.DiffusionPipeline:
        raise ModelError(
            f"stage {entry.name!r} in {folder / MANIFEST} is a {entry.pipeline!r}, expected {', '.join(own)} or the name of a"
            " diffusers pipeline"
        )
    return found


def _is_component(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(part is None or isinstance(part, str) for part in value)


def _load_component(home: Path, name: str, library: str | None, class_name: str | None, dtype: torch.dtype) -> Any:
    """A stage's network or scheduler, whose class is ours or diffusers' own; None where it is left out."""
    import diffusers

    if library is None or class_name is None:
        return None
    module: Any = diffusers if library == "diffusers" else None
    library = f"cascade.{library}" if library.startswith("stages.") else library  # as models were saved before 0.2
    if library == "cascade.stages.unet" or library.startswith("cascade.stages.published."):
        with _damaged(home / "model_index.json"):
            module = import_module(library)
    found: Any = getattr(module, class_name, None)
    if _is_subclass(found, diffusers.SchedulerMixin):
        path = home / name / "scheduler_config.json"
        with _damaged(path):
            return found.from_config(_read_json(path))
    if not _is_subclass(found, diffusers.ModelMixin):
        index = home / "model_index.json"
        raise ModelError(f"{index} asks for {library}.{class_name} as its {name}, which is neither ours nor diffusers' own")
    return _load_network(found, home / name, dtype)


def _is_subclass(found: Any, of: type) -> bool:
    return isinstance(found, type) and issubclass(found, of)


def _load_network(network: Any, folder: Path, dtype: torch.dtype) -> ModelMixin:
    """A network with all its weights and no others; its random initial weights are never made."""
    from accelerate import init_empty_weights
    from safetensors.torch import load_file

    path = folder / "config.json"
    config = _read_json(path)
    if config.get("_class_name") != network.__name__:
        raise ModelError(f"{path} describes a {config.get('_class_name')}, expected the {network.__name__} of model_index.json")
    with _damaged(path), init_empty_weights():
        model = network.from_config(config)
    weights: dict[str, torch.Tensor] = {}
    for path in _weight_files(folder):
        with _damaged(path):
            # Copied even where the type is right: load_file maps the file, whose later changes would reach the model, and whose
            # odd addresses change rounding.
            weights |= {name: v.to(dtype if v.is_floating_point() else v.dtype, copy=True) for name, v in load_file(path).items()}
    _check_weights(folder, {name: tuple(value.shape) for name, value in model.state_dict().items()}, weights)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a network; several where its weights are split, as an index beside them says."""
    index = folder / f"{_WEIGHTS}.index.json"
    files = [folder / _WEIGHTS]
    if index.is_file():
        with _damaged(index):
            files = [folder / Path(name).name for name in sorted(set(_read_json(index)["weight_map"].values()))]
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


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"the model is incomplete: {path} is missing")
    with _damaged(path):
        values = json.loads(path.read_text("utf-8"))
        if not isinstance(values, dict):
            raise TypeError(f"it holds a {type(values).__name__}, expected an object")
    return values


def _classes_from_json(value: Any) -> Vocabulary | None:
    if value is None or isinstance(value, list):
        return None if value is None else Vocabulary.from_names(value)
    if value == _IMAGENET:
        return imagenet()
    raise ValueError(f"classes is {value!r}, expected a list of names, {_IMAGENET} or null")


def _classes_to_json(classes: Vocabulary | None) -> list[str] | dict[str, str] | None:
    if classes is None:
        return None
    return _IMAGENET if classes.wordnet_ids and classes == imagenet() else list(classes.names)


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Turns whatever a library says of a file's contents into one sentence."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path} is damaged or can't be used ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
