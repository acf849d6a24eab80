"""SR3's regression baseline: the same network without noise, which gives the mean of all large images that fit a small one."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from cascade.stages.denoiser import Denoiser
from cascade.stages.noise import MAX_LOG_SNR
from cascade.stages.sr3 import Images, RefiningPipeline
from cascade.stages.stage import ClassLabels, OutputType, as_output, check_way_out, low_res_size_of


def regress(
    network: Denoiser, low_res: Tensor, size: int, class_labels: Tensor | None = None, aug_level: Tensor | None = None
) -> Tensor:
    """One evaluation of a network that predicts "sample", with nothing but zeros in place of the noisy image.

    So a regression has the architecture, weights and inputs of its diffusion sibling (Saharia et al. 2021, arXiv:2104.07636,
    section 4), and sees no image but the small one.

    Args:
        network: Predicts "sample".
        low_res: Small images in [-1, 1], [B, 3, h, w].
        size: Side H of the large ones.
        class_labels: int64 [B], or None.
        aug_level: Augmentation level of `low_res`, [B]; None = 0.

    Returns:
        Large images, [B, 3, H, H], in [-1, 1] up to overshoot.
    """
    nothing = low_res.new_zeros((len(low_res), low_res.shape[1], size, size))
    log_snr = low_res.new_full((len(low_res),), -MAX_LOG_SNR)
    return network(nothing, log_snr, class_labels, low_res, aug_level)


class RegressionPipeline(RefiningPipeline):
    """Enlarges images by one evaluation of a network (SR3's "Regression", arXiv:2104.07636, section 4). Draws no random numbers.

    Args:
        unet: A network with `config.low_res_size` that predicts "sample" and was trained by `regress`.
        id2label: Names of the classes by their indices, as `{0: "ant", 1: "bee"}`; None = not known.
        bfloat16_difference: Of its pictures in mixed precision, see `StagePipeline`; None = not measured.

    Raises:
        ValueError: if the network is none of these.
    """

    def __init__(
        self, unet: ModelMixin, id2label: dict[Any, str] | None = None, bfloat16_difference: float | None = None
    ) -> None:
        if low_res_size_of(unet) is None:
            raise ValueError("this network takes no low-resolution image, so it can't enlarge one; use BasePipeline")
        prediction_type = getattr(unet, "prediction_type", None)
        if prediction_type != "sample":
            raise ValueError(f"a regression needs a network that predicts 'sample', and this one predicts {prediction_type!r}")
        super().__init__(unet, None, id2label=id2label, bfloat16_difference=bfloat16_difference)

    @torch.no_grad()
    def __call__(
        self,
        image: Images,
        class_labels: ClassLabels | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        batch_size: int | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Enlarge images.

        Args:
            image: Square images, at most as large as the stage's own, as `SR3Pipeline` takes them.
            output_type: "pil", "np" ([B, H, W, C] in [0, 1]) or "pt" ([B, C, H, W], float32). **"pt" images are in [-1, 1]**, as
                stages hand them over; those of diffusers' own pipelines are in [0, 1].
            class_labels, return_dict, batch_size: As in a call of `BasePipeline`.

        Returns:
            `ImagePipelineOutput` with `images`.

        Raises:
            ValueError: for arguments that don't fit the model, before the network is run.
            RuntimeError: if the network makes something that is not a number.
        """
        check_way_out(output_type, batch_size)
        low_res = self.low_res_of(image)
        labels = self.check_labels(class_labels, len(low_res))
        device, made = self._execution_device, []
        with self.prepared():
            for part in self.progress_bar(self._micro_batches(len(low_res), batch_size)):
                classes = None if labels is None else labels[part].to(device)
                made.append(self._check_finite(regress(self.unet, low_res[part].to(device), self.size, classes)).clamp(-1, 1))
        self.maybe_free_model_hooks()
        output: Any = as_output(torch.cat(made), output_type)
        return ImagePipelineOutput(images=output) if return_dict else (output,)
