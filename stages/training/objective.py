"""The loss of a denoiser on a batch of training examples."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from cascade.stages.denoiser import Denoiser, detail_std_of, from_x0
from cascade.stages.noise import add_noise, detail_log_snr
from cascade.stages.regression import regress
from cascade.stages.training.recipe import REGRESSION, Objective

MIN_SNR_GAMMA = 5.0
"""The value that Hang et al. use throughout."""


def weight(objective: Objective, prediction_type: str, log_snr: Tensor) -> Tensor:
    """Weight of the squared error of a prediction at a noise level: the same loss whatever the target, up to "none".

    At one estimate of x0, errors of v are (SNR + 1) and errors of the noise SNR times those of x0, all squared.

    By the objective's `weighting`, for each `log_snr` of [B]:
        "none": 1;
        "min_snr": min(SNR, gamma) + 1 for errors of x0, so that little noise gets no more weight than SNR = gamma does (Hang et
        al. 2023, arXiv:2303.09556, in its form for v);
        "sigmoid": sigmoid(sigmoid_bias - log_snr) for errors of the noise (Kingma & Gao 2023, arXiv:2303.00848; Hoogeboom et al.
        2024, arXiv:2410.19324). They weight an integral over log-SNR, here it weights what the law draws: the two agree where the
        law is even in log-SNR, and differ by its density elsewhere.
    """
    if objective.weighting == "none":
        return torch.ones_like(log_snr)
    snr = log_snr.exp()
    if objective.weighting == "min_snr":
        of_x0 = snr.clamp(max=MIN_SNR_GAMMA) + 1
    else:  # sigmoid(bias - log_snr) * SNR, without the product of a vanishing and a huge number
        of_x0 = math.exp(objective.sigmoid_bias) * torch.sigmoid(log_snr - objective.sigmoid_bias)
    x0_per_target = {"sample": torch.ones_like(snr), "v_prediction": snr + 1, "epsilon": snr}  # target error of a unit x0 error
    return of_x0 / x0_per_target[prediction_type]


def denoising_loss(denoiser: Denoiser, batch: Mapping[str, Tensor], objective: Objective) -> Tensor:
    """Weighted error of each image's prediction (DDPM, arXiv:2006.11239, Eq. 14; SR3's Algorithm 1 with `SR3Law` and "l1").

    A regression is the limit without signal: its network sees zeros in place of the noisy image. The target is the denoiser's own
    `prediction_type`, the batch of collated `TrainingExamples`. One value per image, float32 [B], averaged over its pixels.
    """
    labels = batch["label"] if denoiser.num_classes is not None else None
    if objective.kind == REGRESSION:
        prediction = regress(denoiser, batch["low_res"], batch["x0"].shape[-1], labels, batch["aug_level"])
        return _error(prediction, batch["x0"], objective.loss)
    x_t = add_noise(batch["x0"], batch["eps"], batch["log_snr"])
    prediction = denoiser(x_t, batch["log_snr"], labels, batch.get("low_res"), batch.get("aug_level"))
    kind = denoiser.prediction_type
    # noise is the same as from_x0 gives, without its division by a vanishing amplitude
    target = batch["eps"] if kind == "epsilon" else from_x0(batch["x0"], kind, x_t, batch["log_snr"])
    detail_std = detail_std_of(denoiser)  # where it is known, how much of the details is hidden is what counts
    seen = batch["log_snr"] if detail_std is None else detail_log_snr(batch["log_snr"], detail_std)
    loss = weight(objective, kind, seen) * _error(prediction, target, objective.loss)
    if objective.l1_above is None:
        return loss
    return torch.where(batch["log_snr"] > objective.l1_above, _error(prediction, target, "l1"), loss)


def _error(prediction: Tensor, target: Tensor, loss: str) -> Tensor:
    difference = prediction.float() - target
    return (difference.abs() if loss == "l1" else difference.square()).flatten(1).mean(dim=1)
