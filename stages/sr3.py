"""The later stages of a cascade: small images to large ones by iterative refinement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils import logging
from PIL import Image
from torch import Tensor

from stages.conditioning import augment, resize
from stages.pipeline import ClassLabels, Generators, OnStepEnd, OutputType, StagePipeline, low_res_size_of
from stages.sampling import draw_noise

logger = logging.get_logger(__name__)

OneImage = Image.Image | np.ndarray | Tensor
Images = OneImage | Sequence[OneImage]


class SR3Pipeline(StagePipeline):
    """Enlarges images by a diffusion model that sees the small one (Saharia et al. 2021, arXiv:2104.07636).

    Args:
        unet: The network, a `Denoiser` with `config.low_res_size`; `config.aug_level` true if it was trained with augmentation.
        scheduler: Any diffusers scheduler from noise to image.
        guide_unet: A weaker network for autoguidance; None = classifier-free guidance.
        num_inference_steps: Used where a call gives None; so are the next three.
        guidance_scale: 1 = no guidance.
        guidance_interval: Lowest and highest EDM sigma that is guided; None = all.
        aug_level: Noise added to the small image, see `conditioning.augment`.
    """

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        guide_unet: ModelMixin | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
        aug_level: float = 0.0,
    ) -> None:
        if low_res_size_of(unet) is None:
            raise ValueError("this network takes no low-resolution image, so it can't be an SR3 stage; use BasePipeline")
        super().__init__(
            unet,
            scheduler,
            guide_unet,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            aug_level=aug_level,
        )

    @property
    def low_res_size(self) -> int:
        """Side of the images that its network sees."""
        return int(self.unet.config.low_res_size)

    def __call__(
        self,
        image: Images,
        class_labels: ClassLabels | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        aug_level: float | None = None,
        generator: Generators | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        batch_size: int | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Enlarge images; the stage's own setting stands wherever an argument is None.

        Args:
            image: Square images, at most as large as the stage's own: PIL, arrays ([H, W, 3] or [B, H, W, 3], uint8 or float in
                [0, 1]), tensors ([3, H, W] or [B, 3, H, W] in [-1, 1]), or a list of these. They are first resized to
                `low_res_size` as `conditioning.resize` does.
            class_labels: Class indices in [0, num_classes), one an image or one for all; None for a model without classes.
            num_inference_steps: Steps of the scheduler.
            guidance_scale: 1 = no guidance; any other value doubles the evaluations.
            guidance_interval: Lowest and highest EDM sigma that is guided; (0, math.inf) = all.
            aug_level: Noise added to the small image, in [0, 1]; 0 = none.
            generator: One an image, or a single one from which each image's seed is drawn; None = torch's own.
            output_type: "pil", "np" ([B, H, W, C] in [0, 1]) or "pt" ([B, C, H, W] in [-1, 1], float32).
            return_dict: False returns `(images,)`.
            callback_on_step_end: `callback(pipeline, step, timestep, {"latents": noisy images}) -> dict`, after every step of
                every micro-batch; "latents" in its answer replaces them.
            batch_size: Images that go through the network at once; None = 1 on a CPU, so that no byte of an image depends on the
                others, and 8 elsewhere.

        Returns:
            `ImagePipelineOutput` with `images`.

        Raises:
            ValueError: for arguments that don't fit the model, before the network is run.
            RuntimeError: if the network makes something that is no number.
        """
        low_res = torch.cat([resize(self._check_size(one), self.low_res_size) for one in as_tensors(image)])
        level = self.check_aug_level(self.config["aug_level"] if aug_level is None else aug_level)

        def condition(part: slice, generators: list[torch.Generator]) -> dict[str, Tensor | None]:
            small = low_res[part].to(self._execution_device)
            eps = draw_noise(tuple(small.shape), generators, small.device)  # at level 0 too: the other noise stays the same
            levels = torch.full((len(small),), level, device=small.device)
            return {"low_res": augment(small, levels, eps), "aug_level": levels if self._sees_aug_level else None}

        return self.run(
            len(low_res),
            self.check_labels(class_labels, len(low_res)),
            condition=condition,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            generator=generator,
            callback_on_step_end=callback_on_step_end,
            batch_size=batch_size,
            output_type=output_type,
            return_dict=return_dict,
        )

    @property
    def _sees_aug_level(self) -> bool:
        return bool(getattr(self.unet.config, "aug_level", False))

    def check_aug_level(self, level: float) -> float:
        """The level; 0, with a remark in the log, for a network that was trained without augmentation.

        Raises:
            ValueError: if it lies outside [0, 1].
        """
        if not 0 <= level <= 1:
            raise ValueError(f"aug_level must lie in [0, 1], got {level}")
        if level > 0 and not self._sees_aug_level:
            logger.warning(f"aug_level {level} is ignored: this stage was trained without augmentation")
            return 0.0
        return float(level)

    def _check_size(self, images: Tensor) -> Tensor:
        """The images [B, 3, H, W] if this stage can enlarge them."""
        height, width = images.shape[-2:]
        if height != width:
            raise ValueError(f"image is {width}x{height}, but a stage needs a square one; crop it first")
        if height > self.size:
            raise ValueError(f"image is {width}x{height}, larger than the {self.size}x{self.size} that this stage makes")
        return images


def as_tensors(image: Images) -> list[Tensor]:
    """Every image or batch of images as float32 [B, 3, H, W] in [-1, 1], sizes as given."""
    if isinstance(image, Sequence):
        if not image:
            raise ValueError("image is an empty list; give at least one image")
        return [_tensor(one) for one in image]
    return [_tensor(image)]


def _tensor(image: OneImage) -> Tensor:
    if isinstance(image, Image.Image):
        image = np.array(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        tensor = torch.from_numpy(np.array(image))
        tensor = tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()
        tensor = 2 * tensor.movedim(-1, -3) - 1 if tensor.ndim >= 3 else tensor
    elif isinstance(image, Tensor):
        tensor = image.detach().float()
    else:
        raise ValueError(f"image is a {type(image).__name__}, expected a PIL image, an array, a tensor, or a list of these")
    if tensor.ndim == 3:
        tensor = tensor[None]
    if tensor.ndim != 4 or tensor.shape[1] != 3 or tensor.numel() == 0:
        raise ValueError(
            f"image has shape {tuple(image.shape)}, expected [3, H, W] or [B, 3, H, W] for a tensor,"
            " [H, W, 3] or [B, H, W, 3] for an array"
        )
    if not (tensor.isfinite().all() and tensor.abs().max() <= 1.5):
        raise ValueError(
            f"image has values in [{image.min():g}, {image.max():g}], expected [-1, 1] for a tensor,"
            " and [0, 1] or uint8 for an array"
        )
    return tensor
