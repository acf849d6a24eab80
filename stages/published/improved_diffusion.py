"""improved-diffusion: base models and upsamplers (Nichol & Dhariwal 2021, arXiv:2102.09672).

Families `improved-diffusion` and `improved-diffusion-sr`; configurations hold the flags of the project's scripts. The models
know no null class: classifier-free guidance is impossible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import ModelMixin

from cascade.stages.published import adm
from cascade.stages.published.openai import WITHOUT_EFFECT, OpenAIDenoiser, openai_architecture
from cascade.stages.published.options import section

BY_SIZE = {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}
BY_SIZE_SR = {64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}
"""Width multipliers that the project's scripts choose; it has no flag for them."""

_FLAGS = (
    "num_channels", "num_res_blocks", "num_heads", "attention_resolutions", "class_cond", "use_scale_shift_norm",
    "learn_sigma", "diffusion_steps", "noise_schedule", "predict_xstart", "rescale_timesteps",
)  # fmt: skip
_OPTIONAL = ("num_heads_upsample", "sigma_small", *WITHOUT_EFFECT)


def build(config: Mapping[str, Any]) -> adm.UNet:
    """The raw base network of a configuration, `network(x, timesteps, y)`. Its first convolution has the plain base width.

    Raises:
        ValueError: if an option is missing, unknown or impossible.
    """
    flags = section(config, "flags", ("image_size", *_FLAGS), _OPTIONAL)
    return adm.UNet(openai_architecture(config, flags, BY_SIZE, flags["image_size"], first_width=flags["num_channels"]))


def build_sr(config: Mapping[str, Any]) -> adm.SuperResUNet:
    """The raw upsampler of a configuration, `network(x, timesteps, low_res, y)`.

    Raises:
        ValueError: if an option is missing, unknown or impossible.
    """
    flags = section(config, "flags", ("large_size", "small_size", *_FLAGS), _OPTIONAL)
    differences = {"in_channels": 6, "first_width": flags["num_channels"]}
    return adm.SuperResUNet(openai_architecture(config, flags, BY_SIZE_SR, flags["large_size"], **differences))


class ImprovedDiffusionDenoiser(OpenAIDenoiser, ModelMixin):
    """An improved-diffusion base model or upsampler as a denoiser."""

    def build(self, published: Mapping[str, Any]) -> adm.UNet:
        return build_sr(published) if "large_size" in published["flags"] else build(published)
