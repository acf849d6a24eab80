"""The cascade: a base stage that makes small images, and SR3 stages that enlarge them one after another."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Unpack

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from cascade.any_base import AnyBase
from cascade.call import Seeds, check_sampling, exchanged_schedulers, generator_of, seeds_of
from cascade.classes import Vocabulary
from cascade.composition import check_kinds, check_sizes, class_names_of, num_classes_of
from cascade.files import complete_folder, read_text
from cascade.folder import CARD, MANIFEST, Manifest, StageEntry, load_stage
from cascade.models import HubOptions, resolve, upload
from cascade.stage_sampling import Sampling, SamplingSettings, StageSampling, check_name, sampling_of, settings_taken
from cascade.stages.cpu_memory import kept_memory
from cascade.stages.saved import ModelError
from cascade.stages.sr3 import Images, RefiningPipeline, as_tensors
from cascade.stages.stage import Generators, OnStepEnd, OutputType, StagePipeline, as_output, check_way_out, weights_and_mixed

OneClass = str | int
Classes = OneClass | Sequence[OneClass] | Tensor


@dataclass(frozen=True)
class CascadeOutput:
    """What a cascade made.

    images: Of the last stage that ran: PIL images, [B, H, W, C] in [0, 1] ("np"), or [B, C, H, W] in [-1, 1] ("pt").
    stages: The same of every stage that ran, by its name: `stages["base"].images`.
    seeds: Of every image; with it the image can be made again.
    labels: Class index of every image; None for a cascade without classes.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    stages: dict[str, ImagePipelineOutput]
    seeds: list[int]
    labels: list[int] | None


class CascadePipeline:
    """Runs stages one after another; each gives its images, in full precision, and the class to the next.

    Not a diffusers pipeline itself: it holds pipelines, which can be used, changed (`cascade.stages["base"].scheduler = ...`) and
    exchanged alone.

    Args:
        stages: Pipelines by name, in the order in which they run: a base, then any number of `SR3Pipeline` or
            `RegressionPipeline`. The base is a `BasePipeline`, or any diffusers pipeline that returns images and needs no
            argument but `class_labels`. A stage may make larger images than the next one refines (`low_res_size`), which are then
            reduced; never smaller ones.
        classes: What the classes are called; None = as the stages say that were trained on them, else they are known by index.
        name: Of the model.
        card: Its model card, Markdown; None = it has none.
        default_size: Side of the images that a call makes where it doesn't say; None = those of the last stage.

    Attributes:
        sizes: Side of the images of each stage, by its name.
        num_classes: How many classes the stages tell apart; None for a cascade without classes.
        folder: Where it was loaded from or last saved; None for one that was composed.

    Raises:
        ValueError: if the stages don't fit together, or `classes` or `default_size` doesn't fit them.
    """

    def __init__(
        self,
        stages: Mapping[str, DiffusionPipeline],
        classes: Vocabulary | Sequence[str] | None = None,
        name: str = "cascade",
        card: str | None = None,
        default_size: int | None = None,
    ) -> None:
        check_kinds(stages)
        self.stages: Mapping[str, Any] = MappingProxyType(dict(stages))
        classes = class_names_of(stages) if classes is None else classes
        self.classes = classes if classes is None or isinstance(classes, Vocabulary) else Vocabulary.from_names(classes)
        self.name, self.card = name, card
        base_name, base = next(iter(stages.items()))
        self._any_base = None if isinstance(base, StagePipeline) else AnyBase(base)
        self.sizes = {base_name: self._any_base.size} if self._any_base is not None else {}
        self.sizes |= {stage_name: stage.size for stage_name, stage in self._own().items()}
        check_sizes(self._own(), self.sizes)
        self.default_size = default_size
        self._names(base_name, default_size)
        self.num_classes = num_classes_of(self._own(), self.classes)
        self.folder: Path | None = None
        self._offload_device: torch.device | None = None
        self.set_progress_bar_config()

    def __call__(
        self,
        class_labels: Classes | None = None,
        num_images_per_class: int = 1,
        seeds: Seeds | None = None,
        generator: Generators | None = None,
        size: int | None = None,
        sampling: Sampling | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        batch_size: int | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> CascadeOutput:
        """Make images, class by class in the order given, `num_images_per_class` of each.

        Args:
            class_labels: Names, indices or WordNet ids of classes, or a single one; None for a cascade without classes.
            num_images_per_class: Images of every entry of `class_labels`; all images for a cascade without classes.
            seeds: One per image, or a single one s: image i of this call has seed s + i. An image depends on the model, its
                class, its seed and the settings only; to the byte on a CPU with the default `batch_size`. None = drawn.
            generator: In place of `seeds`: one per image, or a single one, from which seeds are drawn; None = torch's own.
            size: Stop at the stage that makes images of this side; None = `default_size`.
            sampling: How each stage is sampled, by its name; a stage that is left out has its own defaults.
            output_type: "pil", "np" ([B, H, W, C] in [0, 1]) or "pt" ([B, C, H, W] in [-1, 1], float32; NOT in [0, 1] as of other
                pipelines of diffusers: it is what a stage takes from the one before).
            return_dict: False returns `(images,)`.
            callback_on_step_end, callback_on_step_end_tensor_inputs: As of the stages, whose pipeline is the first argument.
            batch_size: Images that go through a network at once; None = 1 on a CPU, elsewhere by the memory.
            **settings: Fields of `StageSampling`, each one value for all stages that have it, or a mapping from stage names to
                values; they win over `sampling`.

        Raises:
            ValueError: for arguments that don't fit the cascade, before any network is run.
            RuntimeError: if a network makes something that is not a number.
        """
        if num_images_per_class < 1:
            raise ValueError(f"num_images_per_class must be at least 1, got {num_images_per_class}")
        given = self._indices(class_labels)
        labels = None if given is None else [label for label in given for _ in range(num_images_per_class)]
        count = num_images_per_class if labels is None else len(labels)
        common = _common(callback_on_step_end, callback_on_step_end_tensor_inputs, batch_size)
        names = self.stages_to(size)
        chosen = self.sampling(sampling, **settings)
        out = self._run(names, None, labels, seeds_of(seeds, generator, count), chosen, common, output_type)
        return out if return_dict else (out.images,)  # type: ignore[return-value]  # who asks for a tuple knows

    def upscale(
        self,
        image: Images,
        class_labels: Classes | None = None,
        stage: str | None = None,
        seeds: Seeds | None = None,
        generator: Generators | None = None,
        size: int | None = None,
        sampling: Sampling | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        batch_size: int | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> CascadeOutput:
        """Enlarge images that exist already, by the SR3 stages from one of them on.

        Images that a stage of this cascade made ("pt") become, with the same seeds, what the whole cascade makes of them.

        Args:
            image: Square images, as `SR3Pipeline` takes them.
            class_labels: Names, indices or WordNet ids, one per image, or a single one for all; None where no stage that runs
                knows classes.
            stage: Where to enter; None = at the last stage that needs no larger images, or else at the first that makes larger
                ones.
            size: Stop at the stage that makes images of this side; None = at the last.
            seeds, generator, ...: As in a call of the cascade.

        Raises:
            ValueError: for arguments that don't fit the cascade, before any network is run.
            RuntimeError: if a network makes something that is not a number.
        """
        images = as_tensors(image)
        count = sum(len(one) for one in images)
        names = self._names(self.entry(images) if stage is None else stage, size)
        if not isinstance(self.stages[names[0]], RefiningPipeline):
            raise ValueError(f"stage {names[0]!r} makes images from noise; enlarge from an SR3 stage on")
        asked = class_labels is not None or any(self.stages[name].unet.num_classes is not None for name in names)
        labels = self._indices(class_labels) if asked else None
        labels = labels * count if labels is not None and len(labels) == 1 else labels
        if labels is not None and len(labels) != count:
            raise ValueError(f"got {len(labels)} class_labels for {count} images; give one per image, or a single one for all")
        common = _common(callback_on_step_end, callback_on_step_end_tensor_inputs, batch_size)
        chosen = self.sampling(sampling, **settings)
        out = self._run(names, images, labels, seeds_of(seeds, generator, count), chosen, common, output_type)
        return out if return_dict else (out.images,)  # type: ignore[return-value]  # who asks for a tuple knows

    def sampling(self, given: Sampling | None = None, **settings: Unpack[SamplingSettings]) -> dict[str, StageSampling]:
        """How every stage is sampled with these settings, by its name; arguments and errors as in a call."""
        return sampling_of({name: settings_taken(stage) for name, stage in self.stages.items()}, given, settings)

    def described(self, names: Sequence[str], sampling: Sampling | None = None, batch_size: int | None = None) -> dict[str, Any]:
        """All that the images of these stages depend on beside model, class and seed, as plain values; defaults written out.

        On a CPU the number of threads, too: sums are rounded in parts, so that another number may change last bits.
        """
        described = {
            "stages": {
                name: (sampling or {}).get(name, StageSampling()).described(self.stages[name])
                | ({"mixed_precision": True} if getattr(self.stages[name], "runs_mixed", False) else {})
                for name in names
            },
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "batch_size": batch_size,
        }
        return described | ({"threads": torch.get_num_threads()} if self.device.type == "cpu" else {})

    def stages_to(self, size: int | None = None) -> list[str]:
        """Names of the stages that run to make images of side `size`; None = `default_size`."""
        return self._names(next(iter(self.stages)), size or self.default_size)

    def entry(self, image: Images) -> str:
        """Name of the stage at which images of this size enter, as `upscale` chooses it; ValueError if they are too large."""
        side = max(max(one.shape[-2:]) for one in as_tensors(image))
        larger = {n: stage for n, stage in self._own().items() if isinstance(stage, RefiningPipeline) and stage.size > side}
        if not larger:
            raise ValueError(f"image is {side} px, but the stages of this cascade make at most {max(self.sizes.values())} px")
        return [name for i, (name, stage) in enumerate(larger.items()) if i == 0 or stage.low_res_size <= side][-1]

    def _run(
        self,
        names: list[str],
        images: Any,
        labels: list[int] | None,
        seeds: list[int],
        sampling: Sampling,
        common: Mapping[str, Any],
        output_type: OutputType,
    ) -> CascadeOutput:
        """Check everything, then run the stages `names`, the first of them on `images` (None for the base)."""
        check_way_out(output_type, common["batch_size"])
        with exchanged_schedulers(self.stages, {name: sampling[name] for name in names}), kept_memory():  # from stage to stage
            for name in names:
                check_sampling(name, self.stages[name], sampling[name])
            made: dict[str, Tensor] = {}
            for name in names:
                generators = [generator_of(seed, name) for seed in seeds]
                with self._on_device(self.stages[name]) as stage:
                    images = self._images(stage, images, labels, generators, common, sampling[name].arguments)
                made[name] = images
        shown: dict[str, Any] = {name: as_output(one, output_type) for name, one in made.items()}
        outputs = {name: ImagePipelineOutput(images=one) for name, one in shown.items()}
        return CascadeOutput(shown[names[-1]], outputs, seeds, labels)

    def _images(
        self,
        stage: Any,
        images: Any,
        labels: list[int] | None,
        generators: list[torch.Generator],
        common: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> Tensor:
        """What one stage makes of the images before it (None for the base), [B, C, H, W] in [-1, 1]."""
        if images is None and self._any_base is not None:
            return self._any_base(labels, generators, **common, **settings)
        arguments = {"num_images": len(generators)} if images is None else {"image": images}
        arguments |= {"class_labels": None if stage.unet.num_classes is None else labels, "output_type": "pt"}
        takes = inspect.signature(stage.__call__).parameters  # a regression draws nothing, and has no steps
        arguments |= {key: value for key, value in ({"generator": generators} | dict(common)).items() if key in takes}
        return stage(**arguments, **settings).images

    def _own(self) -> dict[str, Any]:
        return {name: stage for name, stage in self.stages.items() if isinstance(stage, StagePipeline)}

    def _names(self, first: str, size: int | None) -> list[str]:
        """The stages from `first` on, up to the one that makes images of side `size`."""
        check_name(first, self.stages)
        names = list(self.stages)
        names = names[names.index(first) :]
        if size is None:
            return names
        sizes = [self.sizes[name] for name in names]
        if size not in sizes:
            raise ValueError(f"no stage makes {size}x{size} images; choose size from {', '.join(map(str, sizes))}")
        return names[: sizes.index(size) + 1]

    def _indices(self, class_labels: Classes | None) -> list[int] | None:
        """Class indices from names, indices and WordNet ids."""
        takes_classes = self.num_classes is not None or (self._any_base is not None and self._any_base.takes_classes)
        if not takes_classes:
            if class_labels is not None:
                raise ValueError(f"class_labels is {class_labels!r}, but this cascade knows no classes; leave it out")
            return None
        if class_labels is None:
            raise ValueError(f"class_labels is missing: this cascade makes images of {self.num_classes or 'several'} classes")
        given = [class_labels] if isinstance(class_labels, str | int) else list(class_labels)
        if not given:
            raise ValueError("class_labels is empty; give at least one class")
        vocabulary = self.classes or Vocabulary.from_names([f"class {i}" for i in range(self.num_classes or 0)])
        return [vocabulary.index(one) for one in given]

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Within it, calls share what each makes for itself otherwise, as `StagePipeline.prepared` has it, of all stages."""
        with ExitStack() as stack:
            for stage in self._own().values():
                stack.enter_context(stage.prepared())
            yield

    @contextmanager
    def _on_device(self, stage: Any) -> Iterator[Any]:
        """The stage, for as long as it runs on the device to which idle stages don't belong."""
        if self._offload_device is not None:
            stage.to(self._offload_device)
        try:
            yield stage
        finally:
            if self._offload_device is not None:
                stage.to("cpu", silence_dtype_warnings=True)

    def to(self, device: str | torch.device | torch.dtype | None = None, dtype: torch.dtype | None = None) -> CascadePipeline:
        """Move all stages to a device, change the number type of their weights, or both; ends the offload of idle stages."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        for stage in self.stages.values():
            stage.to(*[value for value in (device, dtype) if value is not None], silence_dtype_warnings=True)
        self._offload_device = None if device is not None else self._offload_device
        return self

    def enable_model_cpu_offload(self, device: str | torch.device = "cuda") -> None:
        """Keep on `device` the stage that runs, and all others in the CPU's memory."""
        self.to("cpu")
        self._offload_device = torch.device(device)

    def set_progress_bar_config(self, **options: Any) -> None:
        """Options of tqdm for the bars of all stages (`disable=True` = none); each bar bears its stage's name."""
        for name, stage in self.stages.items():
            stage.set_progress_bar_config(**{**getattr(stage, "_progress_bar_config", {}), **options, "desc": name})

    @property
    def device(self) -> torch.device:
        """Where the stages are; for a cascade with offload, where they run."""
        return self._offload_device or next(iter(self.stages.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the first stage's weights."""
        return next(iter(self.stages.values())).dtype

    @property
    def components(self) -> dict[str, Any]:
        """Arguments that make this cascade again: `CascadePipeline(**cascade.components)`."""
        return {"stages": dict(self.stages)} | {key: vars(self)[key] for key in ("classes", "name", "card", "default_size")}

    def __repr__(self) -> str:
        known = f"{self.num_classes} classes" if self.num_classes else "no classes"
        stages = "".join(f"  {name}: {type(stage).__name__}, {self.sizes[name]} px\n" for name, stage in self.stages.items())
        return f"{type(self).__name__} {self.name!r}, {known}, {self.dtype} on {self.device}\n{stages}".rstrip()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        device: str | torch.device | None = None,
        device_map: str | None = None,
        size: int | None = None,
        variant: str | None = None,
        **hub: Unpack[HubOptions],
    ) -> CascadePipeline:
        """Load a cascade. No code in its files is executed and nothing is unpickled.

        Args:
            name_or_path: As `models.resolve` takes it: a shipped model, a folder, or an id on the Hugging Face Hub.
            torch_dtype, dtype: Number type of the weights ("bfloat16" or `torch.bfloat16`), whatever it is on disk; two names of
                one thing, as in diffusers. "mixed" = float32, with `StagePipeline.mixed_precision`; None = float32, with it for
                those stages whose default it is on this machine.
            device, device_map: Where to put it ("cuda"); two names of one thing. None = the CPU.
            size: Load only the stages that make images of this side; None = all.
            variant: Of the files of weights, as "fp16".
            **hub: `revision`, `cache_dir`, `local_files_only` and `token` of a model on the Hub.

        Raises:
            ModelError: a ValueError, if there is no such model, or it is incomplete, damaged or refused.
            ValueError: if `size` is not that of a stage, or a number type or device is not one.
        """
        folder = resolve(name_or_path, **hub)
        manifest = Manifest.read(folder).up_to(size)
        card = folder / CARD
        weights, mixed = weights_and_mixed(_one_of("dtype", torch_dtype, dtype))
        try:
            loaded = {entry.name: load_stage(folder, entry, weights, variant) for entry in manifest.stages}
            text = read_text(card) if card.is_file() else None
            cascade = cls(loaded, manifest.classes, manifest.name, text, manifest.default_size)
        except ModelError:
            raise
        except ValueError as error:
            raise ModelError(f"{folder}: {error}") from error
        if [replace(entry, folder=entry.name) for entry in manifest.stages] != list(cascade._entries()):
            raise ModelError(f"{folder / MANIFEST} does not describe the stages beside it: their sizes differ")
        cascade.folder = folder
        for stage in cascade._own().values():
            stage.mixed_precision = mixed
        place = _one_of("device", device, device_map)
        return cascade if place is None or torch.device(place).type == "cpu" else cascade.to(place)

    def save_pretrained(
        self, folder: str | Path, *, max_shard_size: int | str | None = None, push_to_hub: bool = False, **hub: Any
    ) -> None:
        """Save the stages, each as its pipeline saves itself in its present number type, `cascade.json`, and the card.

        Written beside `folder` first, then exchanged with it: it is never half-written, and a cascade that lies there is replaced
        at one moment.
        WordNet ids and synonyms of classes are kept for ImageNet only.

        Args:
            folder: New, empty, or that of a cascade.
            max_shard_size: Largest file of weights, as "5GB"; None = as diffusers does it.
            push_to_hub: Also upload it; **hub are the arguments of `push_to_hub`, `repo_id` being the folder's name by default.

        Raises:
            ValueError: if `folder` is there and neither a cascade nor empty, or another process is writing it.
            OSError: if it can't be written; what was there is whole then.
        """
        target = Path(folder).absolute()
        if target.exists() and not (target / MANIFEST).is_file() and not (target.is_dir() and not any(target.iterdir())):
            raise ValueError(f"{target} is there already and is not a cascade; choose another folder, or remove it")
        shards = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        try:
            with complete_folder(target) as written:
                for name, stage in self.stages.items():
                    stage.save_pretrained(written / name, **shards)
                if self.card is not None:
                    (written / CARD).write_text(self.card, "utf-8")
                Manifest(self.name, self.classes, self._entries(), self.default_size).write(written)
        except OSError as error:
            raise OSError(
                f"the model could not be written to {target}: {error.strerror or error}; what was there is whole"
            ) from error
        self.folder = target
        if push_to_hub:
            upload(target, hub.pop("repo_id", target.name), **hub)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None, **hub: Any) -> str:
        """Upload the cascade to the Hugging Face Hub; returns its address. Arguments as of diffusers' pipelines."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "cascade")
            return upload(Path(folder) / "cascade", repo_id, private=private, token=token, **hub)

    def _entries(self) -> tuple[StageEntry, ...]:
        return tuple(StageEntry.of(name, stage, self.sizes[name]) for name, stage in self.stages.items())


def _common(on_step_end: OnStepEnd | None, tensor_inputs: Sequence[str], batch_size: int | None) -> dict[str, Any]:
    """Arguments that every stage of a call gets."""
    callback = {"callback_on_step_end": on_step_end, "callback_on_step_end_tensor_inputs": list(tensor_inputs)}
    return callback | {"batch_size": batch_size}


def _one_of(name: str, first: Any, second: Any) -> Any:
    """The one that is given of two names of an argument."""
    if first is not None and second is not None and first != second:
        raise ValueError(f"{name} is given twice, as {first} and as {second}; give it once")
    return second if first is None else first
