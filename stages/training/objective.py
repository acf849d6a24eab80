"""The loss of a denoiser on a batch of training examples."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stages.denoiser import Denoiser, from_x0
from stages.noise import add_noise

MIN_SNR_GAMMA = 5.0
"""The value that Hang et al. use throughout."""


def weight(weighting: str, prediction_type: str, log_snr: Tensor) -> Tensor:
    """Weight of the error of a prediction at a noise level.

    Args:
        weighting: "none" = 1, or "min_snr": errors of x0 count min(SNR, gamma) + 1, so that all targets share one loss and
            little noise gets no more weight than SNR = gamma does (Hang et al. 2023, arXiv:2303.09556, in its form for v).
        prediction_type: What is predicted.
        log_snr: [B].

    Returns:
        Weights, [B].
    """
    if weighting == "none":
        return torch.ones_like(log_snr)
    snr = log_snr.exp()
    of_x0 = snr.clamp(max=MIN_SNR_GAMMA) + 1
    x0_per_target = {"sample": torch.ones_like(snr), "v_prediction": snr + 1, "epsilon": snr}  # target error of a unit x0 error
    return of_x0 / x0_per_target[prediction_type]


def denoising_loss(denoiser: Denoiser, batch: Mapping[str, Tensor], loss: str, weighting: str = "none") -> Tensor:
    """Weighted error of each image's prediction (DDPM, arXiv:2006.11239, Eq. 14; SR3's Algorithm 1 with `SR3Law` and "l1").

    Args:
        denoiser: Called once; its own `prediction_type` is the target.
        batch: A collated batch of `TrainingExamples`.
        loss: "l1" or "l2".
        weighting: See `weight`.

    Returns:
        One value an image, float32 [B], averaged over its pixels.
    """
    x_t = add_noise(batch["x0"], batch["eps"], batch["log_snr"])
    labels = batch["label"] if denoiser.num_classes is not None else None
    prediction = denoiser(x_t, batch["log_snr"], labels, batch.get("low_res"), batch.get("aug_level")).float()
    target = _target(denoiser.prediction_type, batch, x_t)
    error = (prediction - target).abs() if loss == "l1" else (prediction - target).square()
    return weight(weighting, denoiser.prediction_type, batch["log_snr"]) * error.flatten(1).mean(dim=1)


def _target(prediction_type: str, batch: Mapping[str, Tensor], x_t: Tensor) -> Tensor:
    if prediction_type == "epsilon":
        return batch["eps"]  # the same as from_x0, without its division by a vanishing amplitude
    return from_x0(batch["x0"], prediction_type, x_t, batch["log_snr"])
