"""The loss of a denoiser on a batch of training examples."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from stages.denoiser import Denoiser, from_x0
from stages.noise import add_noise


def denoising_loss(denoiser: Denoiser, batch: Mapping[str, Tensor], loss: str) -> Tensor:
    """Mean error of each image's prediction (Ho et al. 2020, arXiv:2006.11239, Eq. 14; SR3's Algorithm 1 with `SR3Law` and "l1").

    Args:
        denoiser: Called once; its own `prediction_type` is the target.
        batch: A collated batch of `TrainingExamples`.
        loss: "l1" or "l2".

    Returns:
        One value an image, float32 [B], averaged over its pixels.
    """
    x_t = add_noise(batch["x0"], batch["eps"], batch["log_snr"])
    labels = batch["label"] if denoiser.num_classes is not None else None
    prediction = denoiser(x_t, batch["log_snr"], labels, batch.get("low_res"), batch.get("aug_level")).float()
    target = _target(denoiser.prediction_type, batch, x_t)
    error = (prediction - target).abs() if loss == "l1" else (prediction - target).square()
    return error.flatten(1).mean(dim=1)


def _target(prediction_type: str, batch: Mapping[str, Tensor], x_t: Tensor) -> Tensor:
    if prediction_type == "epsilon":
        return batch["eps"]  # the same as from_x0, without its division by a vanishing amplitude
    return from_x0(batch["x0"], prediction_type, x_t, batch["log_snr"])
