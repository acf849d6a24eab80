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

from cascade.stages.conditioning import augment, resize
from cascade.stages.sampling import draw_noise
from cascade.stages.stage import ClassLabels, Condition, Generators, OnStepEnd, OutputType, StagePipeline, low_res_size_of
from cascade.stages.tiling import tile_starts

logger = logging.get_logger(__name__)

OneImage = Image.Image | np.ndarray | Tensor
Images = OneImage | Sequence[OneImage]


class RefiningPipeline(StagePipeline):
    """A stage whose network sees a small image and makes a large one of it: `SR3Pipeline` and `RegressionPipeline`."""

    @property
    def low_res_size(self) -> int:
        """Side of the images that its network sees."""
        return int(self.unet.config.low_res_size)

    def low_res_of(self, image: Images) -> Tensor:
        """The images as the network sees them, [B, 3, low_res_size, low_res_size] in [-1, 1].

        Raises:
            ValueError: if they are none, not square, or larger than those that this stage makes.
        """
        return torch.cat([resize(self._check_size(one), self.low_res_size) for one in as_tensors(image)])

    def _check_size(self, images: Tensor) -> Tensor:
        """The images [B, 3, H, W] if this stage can enlarge them."""
        height, width = images.shape[-2:]
        if height != width:
            raise ValueError(f"image is {width}x{height}, but a stage needs a square one; crop it first")
        if height > self.size:
            raise ValueError(f"image is {width}x{height}, larger than the {self.size}x{self.size} that this stage makes")
        return images


class SR3Pipeline(RefiningPipeline):
    """Enlarges images by a diffusion model that sees the small one (Saharia et al. 2021, arXiv:2104.07636).

    Args:
        unet: The network, a `Denoiser` with `config.low_res_size`; `config.aug_level` true if it was trained with augmentation.
        scheduler: Any diffusers scheduler from noise to image.
        guide_unet: A weaker network for autoguidance; None = classifier-free guidance.
        num_inference_steps: Used where a call gives None; so are the next five.
        guidance_scale: 1 = no guidance.
        guidance_interval: Lowest and highest EDM sigma that is guided; None = all.
        aug_level: Noise added to the small image, see `conditioning.augment`.
        consistency: Whether the large images must average to the small ones, see `consistent.project`.
        tile_size: Side of the tiles that the network sees at once, see `tiling.Tiled`; None = the whole image.
        id2label: Names of the classes by their indices, as `{0: "ant", 1: "bee"}`; None = not known.
        bfloat16_difference: Of its pictures in mixed precision, see `StagePipeline`; None = not measured.
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
        consistency: bool = False,
        tile_size: int | None = None,
        id2label: dict[Any, str] | None = None,
        bfloat16_difference: float | None = None,
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
            consistency=consistency,
            tile_size=tile_size,
            id2label=id2label,
            bfloat16_difference=bfloat16_difference,
        )

    def __call__(
        self,
        image: Images,
        class_labels: ClassLabels | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        aug_level: float | None = None,
        consistency: bool | None = None,
        tile_size: int | None = None,
        generator: Generators | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        batch_size: int | None = None,
        latents: Tensor | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Enlarge images; the stage's own setting stands wherever an argument is None.

        Args:
            image: Square images, at most as large as the stage's own: PIL, arrays ([H, W, 3] or [B, H, W, 3], uint8 or float in
                [0, 1]), tensors ([3, H, W] or [B, 3, H, W] in [-1, 1]), or a list of these. They are first resized to
                `low_res_size` as `conditioning.resize` does.
            aug_level: Noise added to the small image, in [0, 1]; 0 = none.
            consistency: Whether the large image must average to the small one, without its noise. Right where the small image is
                real; where a stage made it, its flaws are kept too.
            tile_size: Side of the tiles that the network sees at once, which bounds its memory; the stage's own size = no tiles.
            output_type: "pil", "np" ([B, H, W, C] in [0, 1]) or "pt" ([B, C, H, W], float32). **"pt" images are in [-1, 1]**, as
                stages hand them over; those of diffusers' own pipelines are in [0, 1].
            batch_size: Images, or tiles of one, that go through the network at once; None = 1 on a CPU, so that no byte of an
                image depends on the others, and elsewhere by the memory (`stage.default_batch_size`).
            class_labels, num_inference_steps, generator, latents, ...: All others, as in a call of `BasePipeline`.

        Returns:
            `ImagePipelineOutput` with `images`.

        Raises:
            ValueError: for arguments that don't fit the model, before the network is run.
            RuntimeError: if the network makes something that is not a number.
        """
        low_res = self.low_res_of(image)
        consistent = self.check_consistency(self.config["consistency"] if consistency is None else consistency)
        tile_size = self.check_tile_size(self.config["tile_size"] if tile_size is None else tile_size)
        level = self.check_aug_level(self.config["aug_level"] if aug_level is None else aug_level)

        def condition(part: slice, generators: list[torch.Generator]) -> Condition:
            small = low_res[part].to(self._execution_device)
            eps = draw_noise(tuple(small.shape), generators, small.device)  # at level 0 too: the other noise stays the same
            levels = torch.full((len(small),), level, device=small.device)
            return Condition(augment(small, levels, eps), levels if self._sees_aug_level else None, small if consistent else None)

        return self.run(
            len(low_res),
            self.check_labels(class_labels, len(low_res)),
            condition=condition,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            generator=generator,
            latents=latents,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            batch_size=batch_size,
            output_type=output_type,
            return_dict=return_dict,
            tile_size=tile_size,
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

    def check_consistency(self, consistency: bool) -> bool:
        """The setting.

        Raises:
            ValueError: if it is true, and a pixel of the small images is not a whole number of pixels of the large ones.
        """
        if consistency:
            self._check_whole_pixels("consistency")
        return consistency

    def check_tile_size(self, tile_size: int | None) -> int | None:
        """The setting; None where the whole image is one tile.

        Raises:
            ValueError: if the image can't be covered by such tiles, or the network can't run on them.
        """
        if tile_size is None or tile_size >= self.size:
            return None
        multiple = getattr(self.unet, "size_multiple", 1)
        if tile_size < 1 or tile_size % multiple:
            raise ValueError(f"tile_size is {tile_size}, but this network runs on sizes divisible by {multiple}")
        tile_starts(self.size, tile_size, self._check_whole_pixels("tile_size"))
        return tile_size

    def _check_whole_pixels(self, setting: str) -> int:
        """Pixels of the large image beside each other in one of the small image; ValueError if that is not a whole number."""
        factor, rest = divmod(self.size, self.low_res_size)
        if rest:
            raise ValueError(
                f"{setting} is for whole enlargements, and this stage makes {self.size} px of {self.low_res_size} px"
            )
        return factor


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
