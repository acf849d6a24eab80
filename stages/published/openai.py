"""What OpenAI's diffusion projects share beside the network: flags of their scripts, noise schedules, and a denoiser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cascade.stages.noise import LinearSchedule, log_snr_of_alpha_bar
from cascade.stages.published.adm import Architecture, UNet
from cascade.stages.published.clock import SteppedDenoiser

WITHOUT_EFFECT = (
    "dropout",
    "use_checkpoint",
    "use_fp16",
    "use_kl",
    "timestep_respacing",
    "rescale_learned_sigmas",
    "weight_schedule",
)
"""Flags of OpenAI's scripts that concern training, or are chosen at sampling time."""

IMAGENET_CLASSES = 1000


def levels(
    config: Mapping[str, Any], flags: Mapping[str, Any], by_size: Mapping[int, Sequence[float]], size: int
) -> tuple[float, ...]:
    """Width multipliers of the levels: given, or those that the family's scripts choose for an image size.

    Raises:
        ValueError: if none is given for a size that the scripts don't know, or two that disagree.
    """
    text = flags.get("channel_mult") or ""
    given = [tuple(config["channel_mult"])] if config.get("channel_mult") else []
    given += [tuple(float(part) for part in str(text).split(","))] if text else []
    if not given and size not in by_size:
        raise ValueError(
            f"image size {size} has no usual channel_mult (known: {sorted(by_size)}); give channel_mult in the configuration"
        )
    if len(given) == 2 and given[0] != given[1]:
        raise ValueError(f"channel_mult is {given[0]} in the configuration and {given[1]} in its flags; give one of them")
    return given[0] if given else tuple(by_size[size])


def attention_factors(flags: Mapping[str, Any], size: int) -> frozenset[int]:
    """Downsampling factors at which blocks attend, from the flag's comma-separated sides in pixels."""
    return frozenset(size // int(side) for side in str(flags["attention_resolutions"]).split(","))


def openai_architecture(
    config: Mapping[str, Any],
    flags: Mapping[str, Any],
    by_size: Mapping[int, Sequence[float]],
    size: int,
    **differences: Any,
) -> Architecture:
    """The architecture that OpenAI's flags mean; `differences` are what sets a project apart."""
    mult = levels(config, flags, by_size, size)
    head_channels, decoder_heads = flags.get("num_head_channels", -1), flags.get("num_heads_upsample", -1)
    settings = {
        "in_channels": 3,
        "out_channels": 6 if flags["learn_sigma"] else 3,
        "width": flags["num_channels"],
        "first_width": int(mult[0] * flags["num_channels"]),
        "channel_mult": mult,
        "blocks": flags["num_res_blocks"],
        "attention_factors": attention_factors(flags, size),
        "heads": flags["num_heads"],
        "decoder_heads": flags["num_heads"] if decoder_heads == -1 else decoder_heads,
        "head_channels": None if head_channels == -1 else head_channels,
        "num_classes": config.get("num_classes", IMAGENET_CLASSES) if flags["class_cond"] else None,
        "scale_shift": flags["use_scale_shift_norm"],
        "resblock_updown": flags.get("resblock_updown", False),
    }
    return Architecture(**{**settings, **differences})


def cosine_table(num_steps: int) -> Tensor:
    """Log-SNR of every step of the cosine schedule, float64 [num_steps] (Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17).

    Each beta is at most 0.999.
    """
    u = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    signal = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
    return log_snr_of_alpha_bar(torch.cumprod(1 - betas, dim=0))


def openai_table(noise_schedule: str, num_steps: int) -> Tensor:
    """Log-SNR of every step of OpenAI's named schedules; "linear" keeps its total noise whatever the number of steps.

    Raises:
        ValueError: for another name.
    """
    if noise_schedule == "cosine":
        return cosine_table(num_steps)
    if noise_schedule == "linear":
        return LinearSchedule(beta_start=0.1 / num_steps, beta_end=20 / num_steps, num_steps=num_steps).table()
    raise ValueError(f"noise_schedule is {noise_schedule!r}, expected 'linear' or 'cosine'")


class OpenAIDenoiser(SteppedDenoiser):
    """A network of improved- or guided-diffusion; with `learn_sigma` it returns 2C channels, prediction first."""

    network: UNet

    def setup(self, published: Mapping[str, Any]) -> tuple[int, int | None]:
        self.network = self.build(published)
        flags = published["flags"]
        self.table = openai_table(flags["noise_schedule"], flags["diffusion_steps"])
        self.scale = 1000 / flags["diffusion_steps"] if flags["rescale_timesteps"] else 1.0
        self.prediction_type = "sample" if flags["predict_xstart"] else "epsilon"
        self.learned_variance = flags["learn_sigma"]
        self.num_classes = self.network.arch.num_classes
        return flags.get("large_size") or flags["image_size"], flags.get("small_size")

    def build(self, published: Mapping[str, Any]) -> UNet:
        """The raw network of a configuration."""
        raise NotImplementedError

    def timesteps(self, log_snr: Tensor) -> Tensor:
        """What the network sees as time, [B], for log-SNRs [B]: a step of its schedule, or thousandths of the schedule."""
        return self.steps(log_snr) * self.scale

    def forward(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        class_labels: Tensor | None = None,
        low_res: Tensor | None = None,
        aug_level: Tensor | None = None,
    ) -> Tensor:
        """As `Denoiser.__call__`; `low_res` is upsampled by the network, `aug_level` has no input here and is ignored.

        Raises:
            ValueError: if an upsampler gets no `low_res`.
        """
        if self.config["low_res_size"] is None:
            return self.network(x_t, self.timesteps(log_snr), class_labels)
        if low_res is None:
            raise ValueError(f"this network refines {self.config['low_res_size']} px images: low_res is missing")
        return self.network(x_t, self.timesteps(log_snr), low_res, class_labels)
