"""The cascade: a base stage that makes small images, and SR3 stages that enlarge them one after another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from cascade.any_base import ForeignBase
from cascade.call import Seeds, accepted, check_name, check_settings, generator_of, schedulers, seeds_of, settings_of
from cascade.classes import Vocabulary
from cascade.composition import check_kinds, check_sizes, num_classes_of
from cascade.models import CARD, MANIFEST, Manifest, ModelError, StageEntry, load_stage, resolve
from cascade.stages.sr3 import Images, RefiningPipeline, as_tensors
from cascade.stages.stage import Generators, OnStepEnd, OutputType, StagePipeline, as_output

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
        classes: What the classes are called; None = they are known by index alone.
        name: Of the model.
        card: Its model card, Markdown; None = it has none.
        default_size: Side of the images that a call makes where it doesn't say; None = those of the last stage.

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
        self.classes = classes if classes is None or isinstance(classes, Vocabulary) else Vocabulary.from_names(classes)
        self.name, self.card = name, card
        base_name, base = next(iter(stages.items()))
        self._foreign = None if isinstance(base, StagePipeline) else ForeignBase(base)
        self.sizes = {base_name: self._foreign.size} if self._foreign is not None else {}
        self.sizes |= {stage_name: stage.size for stage_name, stage in self._own().items()}
        check_sizes(self._own(), self.sizes)
        self.default_size = default_size
        self._names(base_name, default_size)
        self.num_classes = num_classes_of(self._own(), self.classes)
        self._offload_device: torch.device | None = None
        self.set_progress_bar_config()

    def __call__(
        self,
        class_labels: Classes | None = None,
        num_images_per_class: int = 1,
        seeds: Seeds | None = None,
        generator: Generators | None = None,
        size: int | None = None,
        num_inference_steps: int | Mapping[str, int] | None = None,
        guidance_scale: float | Mapping[str, float] | None = None,
        guidance_interval: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
        aug_level: float | Mapping[str, float] | None = None,
        consistency: bool | Mapping[str, bool] | None = None,
        tile_size: int | Mapping[str, int] | None = None,
        scheduler: type | Mapping[str, type] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        batch_size: int | None = None,
    ) -> CascadeOutput:
        """Make images, class by class in the order given, `num_images_per_class` of each.

        A setting is one value for all stages that have it, or a mapping from stage names to values; where it is None, or a
        stage is not in the mapping, the stage's own default stands.

        Args:
            class_labels: Names, indices or WordNet ids of classes, or a single one; None for a cascade without classes.
            num_images_per_class: Images of every entry of `class_labels`; all images for a cascade without classes.
            seeds: One an image, or a single one s: image i of this call has seed s + i. An image depends on the model, its class,
                its seed and the settings only; to the byte on a CPU with the default `batch_size`. None = drawn.
            generator: In place of `seeds`: a generator an image, or a single one, from which seeds are drawn; None = torch's own.
            size: Stop at the stage that makes images of this side; None = `default_size`.
            num_inference_steps: Steps of the scheduler.
            guidance_scale: 1 = no guidance.
            guidance_interval: Lowest and highest EDM sigma that is guided.
            aug_level: Noise added to the small images of SR3 stages, in [0, 1].
            consistency: Whether the images of SR3 stages must average to the small ones that they are made from.
            tile_size: Side of the tiles that the networks of SR3 stages see at once, which bounds their memory.
            scheduler: A class of diffusers schedulers, which takes over the config of the stage's own for this call.
            output_type: "pil", "np" ([B, H, W, C] in [0, 1]) or "pt" ([B, C, H, W] in [-1, 1], float32).
            return_dict: False returns `(images,)`.
            callback_on_step_end: As of the stages; its first argument is the stage's pipeline.
            batch_size: Images that go through a network at once; None = 1 on a CPU, 8 elsewhere.

        Raises:
            ValueError: for arguments that don't fit the cascade, before any network is run.
            RuntimeError: if a network makes something that is no number.
        """
        if num_images_per_class < 1:
            raise ValueError(f"num_images_per_class must be at least 1, got {num_images_per_class}")
        given = self._indices(class_labels)
        labels = None if given is None else [label for label in given for _ in range(num_images_per_class)]
        count = num_images_per_class if labels is None else len(labels)
        settings = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
            "aug_level": aug_level,
            "consistency": consistency,
            "tile_size": tile_size,
        }
        common = {"callback_on_step_end": callback_on_step_end, "batch_size": batch_size}
        names = self._names(next(iter(self.stages)), size or self.default_size)
        with schedulers(self.stages, scheduler):
            out = self._run(names, None, labels, seeds_of(seeds, generator, count), settings, common, output_type)
        return out if return_dict else (out.images,)  # type: ignore[return-value]  # who asks for a tuple knows

    def upscale(
        self,
        image: Images,
        class_labels: Classes | None = None,
        stage: str | None = None,
        seeds: Seeds | None = None,
        generator: Generators | None = None,
        size: int | None = None,
        num_inference_steps: int | Mapping[str, int] | None = None,
        guidance_scale: float | Mapping[str, float] | None = None,
        guidance_interval: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
        aug_level: float | Mapping[str, float] | None = None,
        consistency: bool | Mapping[str, bool] | None = None,
        tile_size: int | Mapping[str, int] | None = None,
        scheduler: type | Mapping[str, type] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        batch_size: int | None = None,
    ) -> CascadeOutput:
        """Enlarge images that exist already, by the SR3 stages from one of them on.

        Images that a stage of this cascade made ("pt") become, with the same seeds, what the whole cascade makes of them.

        Args:
            image: Square images, as `SR3Pipeline` takes them.
            class_labels: Names, indices or WordNet ids, one an image, or a single one for all; None for a cascade without
                classes.
            stage: Where to enter; None = at the last stage that needs no larger images, or else at the first that makes larger
                ones.
            size: Stop at the stage that makes images of this side; None = at the last.
            seeds, generator, ...: As in a call of the cascade.

        Raises:
            ValueError: for arguments that don't fit the cascade, before any network is run.
            RuntimeError: if a network makes something that is no number.
        """
        images = as_tensors(image)
        count = sum(len(one) for one in images)
        labels = self._indices(class_labels)
        labels = labels * count if labels is not None and len(labels) == 1 else labels
        if labels is not None and len(labels) != count:
            raise ValueError(f"got {len(labels)} class_labels for {count} images; give one an image, or a single one for all")
        settings = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
            "aug_level": aug_level,
            "consistency": consistency,
            "tile_size": tile_size,
        }
        common = {"callback_on_step_end": callback_on_step_end, "batch_size": batch_size}
        names = self._names(self._entry(images) if stage is None else stage, size)
        if not isinstance(self.stages[names[0]], RefiningPipeline):
            raise ValueError(f"stage {names[0]!r} makes images from noise; enlarge from an SR3 stage on")
        with schedulers(self.stages, scheduler):
            out = self._run(names, images, labels, seeds_of(seeds, generator, count), settings, common, output_type)
        return out if return_dict else (out.images,)  # type: ignore[return-value]  # who asks for a tuple knows

    def _run(
        self,
        names: list[str],
        images: Any,
        labels: list[int] | None,
        seeds: list[int],
        settings: Mapping[str, Any],
        common: Mapping[str, Any],
        output_type: OutputType,
    ) -> CascadeOutput:
        """Check everything, then run the stages `names`, the first of them on `images` (None for the base)."""
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type is {output_type!r}, expected 'pil', 'np' or 'pt'")
        if common["batch_size"] is not None and common["batch_size"] < 1:
            raise ValueError(f"batch_size must be at least 1, got {common['batch_size']}")
        own = settings_of(self.stages, settings)
        for name in names:
            check_settings(name, self.stages[name], own[name])
        made: dict[str, Tensor] = {}
        for name in names:
            generators = [generator_of(seed, name) for seed in seeds]
            with self._on_device(self.stages[name]) as stage:
                if images is None and self._foreign is not None:
                    images = self._foreign(labels, generators, **common, **own[name])
                else:
                    further = {"num_images": len(seeds)} if images is None else {"image": images}
                    mine = None if stage.unet.num_classes is None else labels
                    further |= {"class_labels": mine, "output_type": "pt"}
                    further |= accepted(stage, {"generator": generators, **common})  # a regression draws nothing
                    images = stage(**further, **own[name]).images
            made[name] = images
        shown: dict[str, Any] = {name: as_output(one, output_type) for name, one in made.items()}
        outputs = {name: ImagePipelineOutput(images=one) for name, one in shown.items()}
        return CascadeOutput(shown[names[-1]], outputs, seeds, labels)

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

    def _entry(self, images: Sequence[Tensor]) -> str:
        """The stage at which images of these sizes enter."""
        side = max(max(one.shape[-2:]) for one in images)
        larger = {n: stage for n, stage in self._own().items() if isinstance(stage, RefiningPipeline) and stage.size > side}
        if not larger:
            raise ValueError(f"image is {side} px, but the stages of this cascade make at most {max(self.sizes.values())} px")
        return [name for i, (name, stage) in enumerate(larger.items()) if i == 0 or stage.low_res_size <= side][-1]

    def _indices(self, class_labels: Classes | None) -> list[int] | None:
        """Class indices from names, indices and WordNet ids."""
        takes_classes = self.num_classes is not None or (self._foreign is not None and self._foreign.takes_classes)
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

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device | None = None
    ) -> CascadePipeline:
        """Load a cascade. No code in its files is executed and nothing is unpickled.

        Args:
            name_or_path: As `models.resolve` takes it: a shipped model, a folder, or an id on the Hugging Face Hub.
            dtype: Number type of the weights, whatever it is on disk.
            device: Where to put it; None = the CPU.

        Raises:
            ModelError: a ValueError, if there is no such model, or it is incomplete, damaged or refused.
        """
        folder = resolve(name_or_path)
        manifest = Manifest.read(folder)
        card = folder / CARD
        try:
            loaded = {entry.name: load_stage(folder, entry, dtype) for entry in manifest.stages}
            text = card.read_text("utf-8") if card.is_file() else None
            cascade = cls(loaded, manifest.classes, manifest.name, text, manifest.default_size)
        except ModelError:
            raise
        except ValueError as error:
            raise ModelError(f"{folder}: {error}") from error
        if cascade._entries() != manifest.stages:
            raise ModelError(f"{folder / MANIFEST} does not describe the stages beside it: their sizes differ")
        return cascade if device is None else cascade.to(device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the stages, each as its pipeline saves itself in its present number type, `cascade.json`, and the card.

        Written beside `folder` first, then renamed, so that it is never half-written. A cascade that lies there is replaced.
        WordNet ids and synonyms of classes are kept for ImageNet only.

        Raises:
            ValueError: if `folder` is there and neither a cascade nor empty.
        """
        target = Path(folder).absolute()
        if target.exists() and not (target / MANIFEST).is_file() and not (target.is_dir() and not any(target.iterdir())):
            raise ValueError(f"{target} is there already and is not a cascade; choose another folder, or remove it")
        written, replaced = (target.with_name(f".{target.name}.{os.getpid()}.{word}") for word in ("new", "old"))
        written.mkdir(parents=True)
        try:
            for name, stage in self.stages.items():
                stage.save_pretrained(written / name)
            if self.card is not None:
                (written / CARD).write_text(self.card, "utf-8")
            Manifest(self.name, self.classes, self._entries(), self.default_size).write(written)
            if target.exists():
                target.rename(replaced)
            written.rename(target)
        finally:
            shutil.rmtree(written, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)

    def _entries(self) -> tuple[StageEntry, ...]:
        return tuple(
            StageEntry(name, name, type(stage).__name__, self.sizes[name], getattr(stage, "low_res_size", None))
            for name, stage in self.stages.items()
        )
