"""The first stage of a cascade: images from noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import ModelMixin, SchedulerMixin
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from cascade.stages.stage import ClassLabels, Generators, OnStepEnd, OutputType, StagePipeline, low_res_size_of


class BasePipeline(StagePipeline):
    """Makes images from noise, of given classes if the network knows classes (Ho et al. 2021, arXiv:2106.15282).

    Args:
        unet: The network, a `Denoiser` without a low-resolution input.
        scheduler: Any diffusers scheduler from noise to image.
        guide_unet: A weaker network for autoguidance, or a classifier of noisy images; None = classifier-free guidance.
        num_inference_steps: Used where a call gives None; so are the next two.
        guidance_scale: 1 = no guidance.
        guidance_interval: Lowest and highest EDM sigma that is guided; None = all.
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
        id2label: dict[Any, str] | None = None,
        bfloat16_difference: float | None = None,
    ) -> None:
        if low_res_size_of(unet) is not None:
            raise ValueError(f"this network refines {low_res_size_of(unet)} px images and can't be a base stage; use SR3Pipeline")
        super().__init__(
            unet,
            scheduler,
            guide_unet,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            id2label=id2label,
            bfloat16_difference=bfloat16_difference,
        )

    def __call__(
        self,
        class_labels: ClassLabels | None = None,
        num_images: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
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
        """Make images; the stage's own setting stands wherever an argument is None.

        Args:
            class_labels: Class indices in [0, num_classes), one per image or one for all; None for a model without classes.
            num_images: Number of images; None = one per class label or per entry of `latents`, or 1 without classes.
            num_inference_steps: Steps of the scheduler.
            guidance_scale: 1 = no guidance; any other value doubles the evaluations.
            guidance_interval: Lowest and highest EDM sigma that is guided; (0, math.inf) = all.
            generator: One per image, or a single one from which each image's seed is drawn; None = torch's own.
            output_type: "pil", "np" ([B, H, W, C] in [0, 1]) or "pt" ([B, C, H, W], float32). **"pt" images are in [-1, 1]**, as
                stages hand them over; those of diffusers' own pipelines are in [0, 1].
            return_dict: False returns `(images,)`.
            callback_on_step_end: `callback(pipeline, step, timestep, {"latents": noisy images}) -> dict`, after every step of
                every micro-batch; "latents" in its answer replaces them. `pipeline._interrupt = True` ends the call early.
            batch_size: Images that go through the network at once; None = 1 on a CPU, so that no byte of an image depends on the
                others, and elsewhere by the memory (`stage.default_batch_size`).
            latents: The noise to start from, unit Gaussian, [B, 3, S, S] for images of side S; None = drawn by `generator`.
            timesteps, sigmas: The scheduler's steps themselves in place of their number, where it takes them, as it takes them.
            callback_on_step_end_tensor_inputs: What the callback is given: "latents", or nothing.

        Returns:
            `ImagePipelineOutput` with `images`.

        Raises:
            ValueError: for arguments that don't fit the model, before the network is run.
            RuntimeError: if the network makes something that is not a number.
        """
        if num_images is not None and num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        if num_images is None and latents is not None:
            num_images = len(latents)
        labels = self.check_labels(class_labels, num_images)
        count = (num_images or 1) if labels is None else len(labels)
        return self.run(
            count,
            labels,
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
        )
