"""What the pipelines of all stages share: arguments, their checks, guidance, micro-batches, and the images' way out."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, Self

import numpy as np
import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor, nn

from cascade.stages.consistent import Consistent, project
from cascade.stages.cpu_convolutions import multiplies_bfloat16, packed_convolutions
from cascade.stages.cpu_memory import kept_memory
from cascade.stages.denoiser import Autoguidance, ClassifierFreeGuidance, Denoiser, FlowMapGuidance
from cascade.stages.sampling import StepCallback, Steps, draw_noise, generators_of, nfe, sample
from cascade.stages.saved import find_stage, load_stage
from cascade.stages.tiling import Tiled

ClassLabels = int | Sequence[int] | Tensor
Generators = torch.Generator | Sequence[torch.Generator]
OutputType = Literal["pil", "np", "pt"]
OnStepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | PipelineCallback | MultiPipelineCallbacks

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
BYTES_PER_PIXEL = 36_000
"""Of an accelerator's memory, for each pixel of an image that is made: several times what the largest published networks need."""
ALIGNMENT = 64
"""Bytes: torch begins every tensor that it allocates at a multiple of them."""

MAX_DIFFERENCE = 1.0
"""Of 255, on average: how far pictures in mixed precision may be from those in float32 for it to be a stage's default."""


def default_batch_size(device: torch.device | str, size: int) -> int:
    """Images of this side that go through a network at once where nobody says how many.

    One on a CPU, so that no byte of an image depends on the others; on a CUDA device a power of two, at most 256, that its whole
    memory has room for at BYTES_PER_PIXEL; 8 elsewhere.
    """
    kind = torch.device(device).type
    if kind != "cuda":
        return 1 if kind == "cpu" else 8
    room = torch.cuda.get_device_properties(device).total_memory // (BYTES_PER_PIXEL * size**2)
    return 1 << min(max(room, 1).bit_length() - 1, 8)


@dataclass(frozen=True)
class Condition:
    """What a micro-batch is made from, beside noise and class.

    low_res, aug_level: Further inputs of the denoiser.
    consistent_with: Small images [B, C, h, h] that the large ones must average to; None = they need not.
    """

    low_res: Tensor | None = None
    aug_level: Tensor | None = None
    consistent_with: Tensor | None = None


def low_res_size_of(unet: Any) -> int | None:
    """Side of the images that a network refines; None for that of a base stage."""
    return getattr(unet.config, "low_res_size", None)


MOST_STEPS = 100_000
"""Of a scheduler, and pixels of a tile's side: more are a mistake, and take memory before they are found to be one."""


class StagePipeline(DiffusionPipeline):
    """One stage of a cascade as a diffusers pipeline. `BasePipeline`, `SR3Pipeline` and `RegressionPipeline` say what goes in.

    Args:
        unet: The network, a `Denoiser` with `config.sample_size`.
        scheduler: Any diffusers scheduler from noise to image; None for a stage that doesn't sample.
        guide_unet: A weaker network for autoguidance, or a classifier; None = classifier-free guidance.
        id2label: Names of the classes by their indices, kept in the pipeline's config; None = they are not known.
        bfloat16_difference: Mean difference, of 255, of its pictures in mixed precision from those in float32, kept in the
            pipeline's config; None = not measured.
        **defaults: Values of call arguments that are used where a call gives None; kept in the pipeline's config.
    """

    unet: Any
    scheduler: Any = None
    guide_unet: Any = None
    _optional_components = ["guide_unet"]
    _callback_tensor_inputs = ["latents"]
    _interrupt = False
    mixed_precision: bool | None = None
    """Whether convolutions of float32 weights multiply in bfloat16, on a CPU that has instructions for it, see
    `packed_convolutions`; None = if the pictures are known to differ by `MAX_DIFFERENCE` at most."""
    model_cpu_offload_seq = "guide_unet->unet"  # type: ignore[assignment]  # diffusers declares None

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin | None,
        guide_unet: ModelMixin | None = None,
        id2label: dict[Any, str] | None = None,
        bfloat16_difference: float | None = None,
        **defaults: Any,
    ) -> None:
        super().__init__()
        _check_defaults(defaults)
        sampler = {} if scheduler is None else {"scheduler": scheduler, "guide_unet": guide_unet}
        self.register_modules(unet=unet, **sampler)
        if id2label is not None:
            if not all(isinstance(name, str) for name in id2label.values()):
                raise ValueError("id2label holds names that are not text")
            names = {str(index): name for index, name in id2label.items()}
            if names.keys() != {str(index) for index in range(self.unet.num_classes or 0)}:
                raise ValueError(f"id2label names {len(names)} classes, expected {self.unet.num_classes or 0}, each by its index")
            defaults["id2label"] = names
        if bfloat16_difference is not None:
            defaults["bfloat16_difference"] = bfloat16_difference
        self.register_to_config(**defaults)

    @property
    def size(self) -> int:
        """Side of the images that it makes."""
        return int(self.unet.config.sample_size)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of its classes in the order of their indices; None where they are not known."""
        names = self.config.get("id2label")
        return None if names is None else tuple(names[str(index)] for index in range(len(names)))

    @property
    def runs_mixed(self) -> bool:
        """Whether a call now runs in mixed precision."""
        if self.unet.dtype != torch.float32 or self.unet.device.type != "cpu" or not multiplies_bfloat16():
            return False
        if self.mixed_precision is not None:
            return self.mixed_precision
        difference = self.config.get("bfloat16_difference")
        return difference is not None and difference <= MAX_DIFFERENCE

    @classmethod
    def from_pretrained(  # type: ignore[override]  # diffusers declares **kwargs alone, which hides what is taken
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        variant: str | None = None,
        device_map: str | torch.device | None = None,
        revision: str | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool | None = None,
        token: str | bool | None = None,
        **given: Any,
    ) -> Self:
        """Load a stage. No code in its files is executed and nothing is unpickled.

        `DiffusionPipeline.from_pretrained` can't load one: it knows the pipelines of diffusers alone ("module diffusers has no
        attribute BasePipeline"). `StagePipeline.from_pretrained` loads whichever stage lies in the folder.

        Args:
            pretrained_model_name_or_path: A folder, or an id on the Hugging Face Hub.
            dtype, torch_dtype: Number type of the weights, or its name, whatever it is on disk; "mixed" = float32, with
                `mixed_precision`; None = float32, with it where it is the stage's default.
            variant: Word in the names of the weight files, such as "fp16"; None = files without one.
            device_map: The device on which the whole stage is put; None = the CPU.
            revision, cache_dir, local_files_only, token: As of `huggingface_hub.snapshot_download`.
            **given: Components and settings in place of those saved: `scheduler=...`, `guide_unet=...`, `guidance_scale=2.0`.

        Raises:
            ModelError: a ValueError, if there is no such stage, it is of another class, incomplete, damaged or refused.
            ValueError: for an argument that isn't known, or a value that can't be used.
        """
        if dtype is not None and torch_dtype is not None:
            raise ValueError("got both dtype and torch_dtype, two names of one thing; give one of them")
        device = None if device_map is None else _one_device(device_map)
        hub = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        folder = find_stage(pretrained_model_name_or_path, **{name: value for name, value in hub.items() if value is not None})
        weights, mixed = weights_and_mixed(dtype or torch_dtype)
        stage = load_stage(folder, weights, variant, wanted=cls, **given)
        stage.mixed_precision = mixed
        return stage if device is None else stage.to(device)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **given: Any) -> Self:
        """A stage of the same networks, scheduler and settings as `pipeline`, but for what is given; no weight is copied or cast.

        Raises:
            ValueError: if this class of stages doesn't take something that is given, or can't be made of those parts.
        """
        takes = inspect.signature(cls).parameters
        if unknown := [name for name in given if name not in takes]:
            raise ValueError(f"{cls.__name__}.from_pipe doesn't take {unknown[0]!r}; it takes {', '.join(takes)}")
        parts = {**pipeline.components, **pipeline.parameters}
        return cls(**{name: value for name, value in parts.items() if name in takes} | given)

    @property
    def components(self) -> dict[str, Any]:
        """Networks, scheduler and settings, by the names of the constructor's arguments: `SR3Pipeline(**pipe.components)`."""
        return super().components | super().parameters

    @property
    def parameters(self) -> dict[str, Any]:
        """Empty, as `components` has the settings too; diffusers' `Class(**pipe.components, **pipe.parameters)` is the same."""
        return {}

    @property
    def interrupt(self) -> bool:
        """Whether the call that runs ends early, as `pipe._interrupt = True` in a callback or another thread tells it to.

        Every image is then the denoised image of its last step; those of later micro-batches get one step each.
        """
        return self._interrupt

    def guided(self, scale: float | None, interval: Sequence[float] | None) -> Denoiser:
        """The network under guidance: by its own inputs, by `guide_unet` (a weaker one, or a classifier), or classifier-free.

        Raises:
            ValueError: if the network can't be guided so.
        """
        scale = self.config["guidance_scale"] if scale is None else scale
        interval = self.config["guidance_interval"] if interval is None else interval
        bounds = None if interval is None else (float(interval[0]), float(interval[1]))
        if getattr(self.unet, "flow_map", False):
            if self.guide_unet is not None:
                raise ValueError("this network sees its guidance as an input; leave guide_unet out")
            return FlowMapGuidance(self.unet, scale, bounds)
        if hasattr(self.guide_unet, "guide"):  # a classifier
            return self.guide_unet.guide(self.unet, scale, bounds)
        if self.guide_unet is not None:
            return Autoguidance(self.unet, self.guide_unet, scale, bounds)
        return ClassifierFreeGuidance(self.unet, scale, bounds)

    def check_labels(self, class_labels: ClassLabels | None, count: int | None) -> Tensor | None:
        """Class of every image, int64 [B] on the CPU; one int stands for all `count` of them. None for a model without classes.

        Raises:
            ValueError: if the model has no classes, needs them, has not this one, or their number is not `count`.
        """
        classes = self.unet.num_classes
        if class_labels is None:
            if classes is not None:
                raise ValueError(f"class_labels is missing: this model makes {classes} classes, give indices 0 to {classes - 1}")
            return None
        if classes is None:
            raise ValueError(f"class_labels is {class_labels}, but this model knows no classes; leave it out")
        labels = _as_tensor(class_labels)
        if labels.numel() == 0:
            raise ValueError("class_labels is empty; give at least one class index")
        if labels.ndim > 1 or labels.dtype not in INTEGERS:
            raise ValueError(f"class_labels must be one index or a list of indices, got {class_labels!r}")
        labels = labels.long().expand(1 if count is None else count) if labels.ndim == 0 else labels.long()
        if count is not None and len(labels) != count:
            raise ValueError(f"got {len(labels)} class_labels for {count} images; give one per image, or a single index for all")
        if not (labels.min() >= 0 and labels.max() < classes):
            wrong = [label for label in labels.tolist() if not 0 <= label < classes]
            raise ValueError(f"class index {wrong[0]} is out of range: this model makes {classes} classes, 0 to {classes - 1}")
        return labels

    def run(
        self,
        count: int,
        labels: Tensor | None,
        *,
        condition: Callable[[slice, list[torch.Generator]], Condition] = lambda part, generators: Condition(),
        num_inference_steps: int | None,
        timesteps: Sequence[float] | None,
        sigmas: Sequence[float] | None,
        guidance_scale: float | None,
        guidance_interval: Sequence[float] | None,
        generator: Generators | None,
        latents: Tensor | None,
        callback_on_step_end: OnStepEnd | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
        batch_size: int | None,
        output_type: OutputType,
        return_dict: bool,
        tile_size: int | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Sample `count` images in micro-batches; the arguments are those of a pipeline's call.

        `condition` says for a slice of the images and its generators what they are made from. With a `tile_size`, images go one
        by one, and `batch_size` is the number of tiles at once.

        Raises:
            ValueError: for settings that can't be run, before the first evaluation of the network.
            RuntimeError: if the network makes something that is not a number.
        """
        check_way_out(output_type, batch_size)
        steps = self._steps(num_inference_steps, timesteps, sigmas)
        self._check_latents(latents, count)
        self._interrupt = False
        on_step_end = self._step_end(callback_on_step_end, callback_on_step_end_tensor_inputs)

        def callback(step: int, timestep: Tensor, x: Tensor) -> Tensor | None:
            progress.update()
            return None if on_step_end is None else on_step_end(step, timestep, x)

        denoiser, generators = self.guided(guidance_scale, guidance_interval), generators_of(generator, count)
        if tile_size is not None and tile_size < self.size:
            denoiser, batch_size = Tiled(denoiser, tile_size, batch_size or self._default_batch_size), 1
        batches = self._micro_batches(count, batch_size)
        made = []
        with self.progress_bar(total=nfe(self.scheduler, steps) * len(batches)) as progress, self.prepared():
            for part in batches:
                mine = generators[part]
                given = condition(part, mine)
                target = given.consistent_with
                shape = (len(mine), 3, self.size, self.size)
                images = sample(
                    denoiser if target is None else Consistent(denoiser, target),
                    self.scheduler,
                    draw_noise(shape, mine, self._execution_device)
                    if latents is None
                    else latents[part].to(self._execution_device, torch.float32),
                    steps,
                    class_labels=None if labels is None else labels[part].to(self._execution_device),
                    generator=mine,
                    callback=callback,
                    interrupted=lambda: self.interrupt,
                    low_res=given.low_res,
                    aug_level=given.aug_level,
                )
                images = self._check_finite(images).clamp(-1, 1)
                made.append(images if target is None else project(images, target))
        self.maybe_free_model_hooks()
        output: Any = as_output(torch.cat(made), output_type)
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    @property
    def _networks(self) -> list[Any]:
        return [network for network in (self.unet, self.guide_unet) if network is not None]

    def _lay_out(self) -> None:
        """Weights in channels_last, which halves a CPU's time for convolutions; at the first run, so that loading stays lazy."""
        for network in self._networks:
            # Not diffusers' own `to`, which imports its offloading to ask about it.
            _align(nn.Module.to(network, memory_format=torch.channels_last))  # type: ignore[call-overload]  # its stubs lack it

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Within it, calls on a CPU share what each makes for itself otherwise: packed weights, and memory for feature maps.

        The weights must not change meanwhile.
        """
        self._lay_out()
        on_cpu = self._execution_device.type == "cpu"
        with kept_memory() if on_cpu else nullcontext(), packed_convolutions(*self._networks, mixed=self.runs_mixed):
            yield

    @property
    def _default_batch_size(self) -> int:
        return default_batch_size(self._execution_device, self.size)

    def _micro_batches(self, count: int, size: int | None) -> list[slice]:
        """The images that go through the network at once: `size` of them, or the device's default."""
        size = size or self._default_batch_size
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def _steps(self, count: int | None, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> Steps:
        own = {name: value for name, value in (("timesteps", timesteps), ("sigmas", sigmas)) if value is not None}
        if len(own) + (count is not None) > 1:
            raise ValueError("num_inference_steps, timesteps and sigmas say the same thing in different ways; give one of them")
        return own or (self.config["num_inference_steps"] if count is None else count)

    def _check_latents(self, latents: Tensor | None, count: int) -> None:
        expected = (count, 3, self.size, self.size)
        if latents is not None and tuple(latents.shape) != expected:
            raise ValueError(f"latents have shape {tuple(latents.shape)}, expected unit Gaussian noise of shape {expected}")

    def _step_end(self, given: Any, names: Sequence[str]) -> StepCallback | None:
        """A user's callback, and a check of what it returns."""
        names = given.tensor_inputs if isinstance(given, PipelineCallback | MultiPipelineCallbacks) else names
        if unknown := [name for name in names if name not in self._callback_tensor_inputs]:
            offered = ", ".join(self._callback_tensor_inputs)
            raise ValueError(f"callback_on_step_end_tensor_inputs has {unknown[0]!r}, but there is only {offered}")
        if given is None:
            return None

        def step_end(step: int, timestep: Tensor, x: Tensor) -> Tensor:
            made = given(self, step, timestep, {"latents": x} if "latents" in names else {})
            if not isinstance(made, dict):
                raise ValueError(f"callback_on_step_end returned {made!r}, expected a dictionary; return the one it is given")
            latents = made.get("latents", x)
            if not isinstance(latents, Tensor) or latents.shape != x.shape:
                got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
                raise ValueError(f"callback_on_step_end returned latents of shape {got}, expected {tuple(x.shape)}")
            return latents

        return step_end

    def _check_finite(self, images: Tensor) -> Tensor:
        if not torch.isfinite(images).all():
            how = "" if self.scheduler is None else f" with {type(self.scheduler).__name__}"
            raise RuntimeError(
                f"{type(self).__name__} at {self.size} px made values that are not numbers (NaN or infinite){how}"
                f" in {self.unet.dtype}; its weights are damaged or this number type is too small"
            )
        return images


def weights_and_mixed(dtype: torch.dtype | str | None) -> tuple[torch.dtype | str, bool | None]:
    """Number type of the weights, and `mixed_precision`, that an argument `dtype` of `from_pretrained` means."""
    mixed = dtype == "mixed"
    return "float32" if mixed or dtype is None else dtype, None if dtype is None else mixed


def _check_defaults(values: Mapping[str, Any]) -> None:
    """Raise ValueError unless the settings are of the right kinds, and some stage can be sampled with them."""

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_STEPS

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    def interval(value: Any) -> bool:
        two = isinstance(value, list | tuple) and len(value) == 2
        return value is None or (two and all(isinstance(one, int | float) for one in value))

    expected: dict[str, tuple[Callable[[Any], bool], str]] = {
        "num_inference_steps": (whole, f"a whole number from 1 to {MOST_STEPS:,}"),
        "guidance_scale": (number, "a number"),
        "guidance_interval": (interval, "the lowest and the highest sigma, or null"),
        "aug_level": (lambda v: number(v) and 0 <= v <= 1, "a number from 0 to 1"),
        "consistency": (lambda v: isinstance(v, bool), "true or false"),
        "tile_size": (lambda v: v is None or whole(v), "a side in pixels, or null"),
    }
    for name, (fits, words) in expected.items():
        if name in values and not fits(values[name]):
            raise ValueError(f"{name} is {values[name]!r}, expected {words}")


def _one_device(device_map: Any) -> torch.device:
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"device_map is {device_map!r}, but a stage lies on one device as a whole; give its name, such as 'cuda'"
        ) from None


def _align(network: nn.Module) -> None:
    """Copy the weights that begin at an odd address, as those mapped from a file do, to one that torch would choose.

    The address changes how a CPU rounds: aligned, a network makes the same bits however it was loaded.
    """
    for weight in (*network.parameters(), *network.buffers()):
        if weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()


def _as_tensor(values: Any) -> Tensor:
    """The values on the CPU; NaN where they are not numbers."""
    try:
        return torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError):
        return torch.tensor(torch.nan)


def check_way_out(output_type: str, batch_size: int | None) -> None:
    """Raise ValueError unless there is such an output type and micro-batches hold at least one image."""
    if output_type not in ("pil", "np", "pt"):
        raise ValueError(f"output_type is {output_type!r}, expected 'pil', 'np' or 'pt'")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def as_output(images: Tensor, output_type: OutputType) -> Tensor | np.ndarray | list[Image.Image]:
    """Images [B, C, H, W] in [-1, 1] as they are ("pt"), as arrays [B, H, W, C] in [0, 1] ("np"), or as PIL images ("pil")."""
    if output_type == "pt":
        return images
    array = (images / 2 + 0.5).permute(0, 2, 3, 1).cpu().numpy()
    return array if output_type == "np" else DiffusionPipeline.numpy_to_pil(array)
