"""The common half of the denoisers of all families: log-SNR outside, what the network was trained to see as noise inside."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from cascade.stages.noise import like_image, sigma_of, signal_and_noise

Condition = Tensor | None
"""What a denoiser sees beside the noisy image; None where there is none."""

STEP_TOLERANCE = 0.01
"""A time this close to a whole step is that step: schedulers keep alpha_bar in float32, too coarse for the clean end."""


def steps_of(log_snr: Tensor, table: Tensor) -> Tensor:
    """Fractional step at which a table of falling log-SNRs has `log_snr`, held at its ends; shape of `log_snr`, float32.

    Linear between two entries; within `STEP_TOLERANCE` of a whole step it is that step. The table is float64 on the CPU; a
    denoiser does not keep it as a buffer, so that a change of number type leaves it alone.
    """
    levels = log_snr.detach().double().cpu().numpy()
    steps = np.interp(-levels, -table.numpy(), np.arange(len(table), dtype=np.float64))
    whole = np.round(steps)
    steps = np.where(np.abs(steps - whole) < STEP_TOLERANCE, whole, steps)
    return torch.from_numpy(np.asarray(steps, dtype=np.float32)).to(log_snr.device)


class PublishedDenoiser(ModelMixin, ConfigMixin):
    """A published network as a `Denoiser`. A family says how: `setup` and `predict`.

    Each family's class names `ModelMixin` as a base again: diffusers finds out how to load a class by looking for that name in
    the class's own module.

    Args:
        published: The family's own configuration, as `cascade.stages.published.load` takes it; ValueError if it is not one.
        sample_size: Side of the images that it makes; follows from `published`, written beside it for readers of the config.
        low_res_size: Side of the images that it refines, None for a base; follows from `published` too.
    """

    network: nn.Module
    prediction_type: str = "epsilon"
    num_classes: int | None = None
    null_label: int | None = None
    learned_variance: bool = False

    @register_to_config
    def __init__(self, published: Mapping[str, Any], sample_size: int | None = None, low_res_size: int | None = None) -> None:
        super().__init__()
        sample_size, low_res_size = self.setup(published)
        self.register_to_config(published=dict(published), sample_size=sample_size, low_res_size=low_res_size)

    def setup(self, published: Mapping[str, Any]) -> tuple[int, int | None]:
        """Build the network, set the facts that differ from those above, and return `sample_size` and `low_res_size`."""
        raise NotImplementedError

    def predict(self, x_t: Tensor, log_snr: Tensor, class_labels: Tensor | None, low_res: Tensor | None) -> Tensor:
        """As `Denoiser.__call__`; `low_res` is given exactly to a network that refines."""
        raise NotImplementedError

    def forward(
        self, x_t: Tensor, log_snr: Tensor, class_labels: Condition = None, low_res: Condition = None, aug_level: Condition = None
    ) -> Tensor:
        """As `Denoiser.__call__`; ValueError if a network that refines gets no `low_res`.

        No published network has an input for `aug_level`, and a base model ignores `low_res` too.
        """
        low_res_size = self.config["low_res_size"]
        if low_res_size is not None and low_res is None:
            raise ValueError(f"this network refines {low_res_size} px images: low_res is missing")
        return self.predict(x_t, log_snr, class_labels, None if low_res_size is None else low_res)


class SigmaDenoiser(PublishedDenoiser):
    """A denoiser whose network takes EDM's noisy image `x0 + sigma eps` with its sigma and the class, and predicts x0."""

    prediction_type = "sample"

    def predict(self, x_t: Tensor, log_snr: Tensor, class_labels: Tensor | None, low_res: Tensor | None) -> Tensor:
        alpha, _ = signal_and_noise(log_snr.double())
        x = x_t.float() / like_image(alpha.float(), x_t.float())
        return self.network(x, sigma_of(log_snr.double()).float(), class_labels)
