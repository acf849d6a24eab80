"""What the flags of OpenAI's scripts mean, in all of its diffusion projects: architecture, noise schedule, denoiser, sampler."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from cascade.stages.noise import LinearSchedule, log_snr_of_alpha_bar
from cascade.stages.published.denoisers import PublishedDenoiser, steps_of
from cascade.stages.published.family import Checkpoint, Config, Family
from cascade.stages.published.openai_unet import Architecture, UNet

NETWORK_FLAGS = (
    "num_channels", "num_res_blocks", "num_heads", "attention_resolutions", "class_cond", "use_scale_shift_norm", "learn_sigma",
)  # fmt: skip
FLAGS = (*NETWORK_FLAGS, "diffusion_steps", "noise_schedule", "predict_xstart", "rescale_timesteps")
"""Flags that improved- and guided-diffusion need."""

WITHOUT_EFFECT = (
    "dropout", "use_checkpoint", "use_fp16", "use_kl", "timestep_respacing", "rescale_learned_sigmas", "weight_schedule",
)  # fmt: skip
"""Flags that concern training, or are chosen at sampling time."""

CONFIG_KEYS = ("flags", "channel_mult", "num_classes")
IMAGENET_CLASSES = 1000


Sizes = Mapping[int, Sequence[float]]
"""Width multipliers of the levels that a project's scripts choose by image size."""


def levels(config: Config, flags: Config, by_size: Sizes, size: int) -> tuple[float, ...]:
    """Width multipliers of the levels: given, or those that the family's scripts choose for an image size."""
    given = [tuple(config["channel_mult"])] if config.get("channel_mult") else []
    given += [tuple(float(part) for part in str(text).split(","))] if (text := flags.get("channel_mult")) else []
    if not given and size not in by_size:
        raise ValueError(f"image size {size} has no usual channel_mult, as {sorted(by_size)} have; give it in the configuration")
    if len(given) == 2 and given[0] != given[1]:
        raise ValueError(f"channel_mult is {given[0]} in the configuration and {given[1]} in its flags; give one of them")
    return given[0] if given else tuple(by_size[size])


def architecture(config: Config, flags: Config, by_size: Sizes, size: int, **differences: Any) -> Architecture:
    """The architecture that the flags mean; `differences` are what sets a project apart. ValueError if they fit none."""
    widths = tuple(int(factor * flags["num_channels"]) for factor in levels(config, flags, by_size, size))
    head_channels, decoder_heads = flags.get("num_head_channels", -1), flags.get("num_heads_upsample", -1)
    settings = {
        "in_channels": 3,
        "out_channels": 6 if flags["learn_sigma"] else 3,
        "width": flags["num_channels"],
        "first_width": widths[0],
        "widths": widths,
        "blocks": flags["num_res_blocks"],
        "attention_factors": frozenset(size // int(side) for side in str(flags["attention_resolutions"]).split(",")),
        "heads": flags["num_heads"],
        "decoder_heads": flags["num_heads"] if decoder_heads == -1 else decoder_heads,
        "head_channels": None if head_channels == -1 else head_channels,
        "num_classes": config.get("num_classes", IMAGENET_CLASSES) if flags["class_cond"] else None,
        "scale_shift": flags["use_scale_shift_norm"],
        "resblock_updown": flags.get("resblock_updown", False),
    }
    return Architecture(**{**settings, **differences})


def noise_table(noise_schedule: str, num_steps: int) -> Tensor:
    """Log-SNR of every step of a schedule, float64 [num_steps]: "linear", which keeps its total noise whatever their number, or
    "cosine", Eq. 17 of Nichol & Dhariwal 2021 (arXiv:2102.09672) with each beta at most 0.999. ValueError for another name.
    """
    if noise_schedule == "cosine":
        u = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        signal = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
        return log_snr_of_alpha_bar(torch.cumprod(1 - betas, dim=0))
    if noise_schedule == "linear":
        return LinearSchedule(beta_start=0.1 / num_steps, beta_end=20 / num_steps, num_steps=num_steps).table()
    raise ValueError(f"noise_schedule is {noise_schedule!r}, expected 'linear' or 'cosine'")


def sampler(config: Config) -> tuple[DDPMScheduler, dict[str, Any]]:
    """Ancestral sampling as the scripts do it, with the learned variance where there is one; "linspace" is their respacing.

    The papers' figures were measured with 250 steps.
    """
    flags, steps = config["flags"], config["flags"]["diffusion_steps"]
    betas: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2"}
    if flags["noise_schedule"] == "linear":
        betas = {"beta_schedule": "linear", "beta_start": 0.1 / steps, "beta_end": 20 / steps}
    fixed = "fixed_small" if flags.get("sigma_small") else "fixed_large"
    scheduler = DDPMScheduler(
        num_train_timesteps=steps,
        variance_type="learned_range" if flags["learn_sigma"] else fixed,
        clip_sample=True,
        prediction_type="sample" if flags["predict_xstart"] else "epsilon",
        timestep_spacing="linspace",
        **betas,
    )
    return scheduler, {"num_inference_steps": 250}


def checkpoint(folder: str, file: str, parameters: int, keys: int, flags: Config, **further: Any) -> Checkpoint:
    """A file in a folder of OpenAI's store; where `further` flags differ from `flags`, they win."""
    url = f"https://openaipublic.blob.core.windows.net/{folder}/{file}"
    return Checkpoint(file=file, config={"flags": {**flags, **further}}, url=url, parameters=parameters, keys=keys)


_HINT = "'flags', the options of the project's scripts"
family = partial(Family, licence="MIT", config_keys=CONFIG_KEYS, config_hint=_HINT, sampler=sampler)
"""The record of a family of OpenAI's, from what is its own."""


class OpenAIDenoiser(PublishedDenoiser):
    """A network of improved- or guided-diffusion; with `learn_sigma` it returns 2C channels, prediction first.

    It sees the number of a step of the schedule that it was trained with, and upsamples `low_res` itself.
    """

    network: UNet
    build: Callable[[Config, bool], UNet]

    def setup(self, published: Config) -> tuple[int, int | None]:
        flags = published["flags"]
        self.network = self.build(published, "large_size" in flags)
        self.table = noise_table(flags["noise_schedule"], flags["diffusion_steps"])
        self.scale = 1000 / flags["diffusion_steps"] if flags["rescale_timesteps"] else 1.0
        self.prediction_type = "sample" if flags["predict_xstart"] else "epsilon"
        self.learned_variance = flags["learn_sigma"]
        self.num_classes = self.network.arch.num_classes
        return flags.get("large_size") or flags["image_size"], flags.get("small_size")

    def timesteps(self, log_snr: Tensor) -> Tensor:
        """What the network sees as time, [B], for log-SNRs [B]: a step of its schedule, or thousandths of the schedule."""
        return steps_of(log_snr, self.table) * self.scale

    def predict(self, x_t: Tensor, log_snr: Tensor, class_labels: Tensor | None, low_res: Tensor | None) -> Tensor:
        inputs = () if low_res is None else (low_res,)
        return self.network(x_t, self.timesteps(log_snr), *inputs, class_labels)
