"""improved-diffusion: base models and upsamplers (Nichol & Dhariwal 2021, arXiv:2102.09672).

Families `improved-diffusion` and `improved-diffusion-sr`; configurations hold the flags of the project's scripts. The models
know no null class: classifier-free guidance is impossible.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from diffusers import ModelMixin

from cascade.stages.published import openai_flags
from cascade.stages.published.family import Config, section
from cascade.stages.published.openai_flags import FLAGS, WITHOUT_EFFECT, OpenAIDenoiser, architecture
from cascade.stages.published.openai_unet import SuperResUNet, UNet

BY_SIZE = {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}
BY_SIZE_SR = {64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}


def build(config: Config, refines: bool) -> UNet:
    """The raw network of a configuration, `network(x, timesteps, y)`; of an upsampler, `network(x, timesteps, low_res, y)`.

    Its first convolution has the plain base width. The scripts have no flag for the widths of the levels.
    """
    sizes = ("large_size", "small_size") if refines else ("image_size",)
    flags = section(config, "flags", (*sizes, *FLAGS), ("num_heads_upsample", "sigma_small", *WITHOUT_EFFECT))
    differences = {"in_channels": 6 if refines else 3, "first_width": flags["num_channels"]}
    arch = architecture(config, flags, BY_SIZE_SR if refines else BY_SIZE, flags[sizes[0]], **differences)
    return SuperResUNet(arch) if refines else UNet(arch)


class ImprovedDiffusionDenoiser(OpenAIDenoiser, ModelMixin):
    """An improved-diffusion base model or upsampler as a denoiser."""

    build = staticmethod(build)


_UNCONDITIONAL: dict[str, Any] = {
    "num_channels": 128, "num_res_blocks": 3, "num_heads": 4, "attention_resolutions": "16,8", "class_cond": False,
    "use_scale_shift_norm": True, "learn_sigma": True, "diffusion_steps": 4000, "noise_schedule": "cosine",
    "predict_xstart": False, "rescale_timesteps": True,
}  # fmt: skip
_CONDITIONAL = {**_UNCONDITIONAL, "num_channels": 192, "class_cond": True, "rescale_timesteps": False}
_UPSAMPLER = {**_CONDITIONAL, "large_size": 256, "small_size": 64, "num_res_blocks": 2, "noise_schedule": "linear"}
_LSUN = {
    **_UNCONDITIONAL, "image_size": 256, "num_res_blocks": 2, "num_heads": 1, "use_scale_shift_norm": False,
    "attention_resolutions": "16", "diffusion_steps": 1000, "noise_schedule": "linear", "rescale_timesteps": False,
}  # fmt: skip
_checkpoint = partial(openai_flags.checkpoint, "diffusion/march-2021")

BASE = openai_flags.family(
    name="improved-diffusion",
    project="https://github.com/openai/improved-diffusion",
    build=partial(build, refines=False),
    denoiser=ImprovedDiffusionDenoiser,
    checkpoints=(
        _checkpoint("imagenet64_cond_270M_250K.pt", 273_049_350, 451, _CONDITIONAL, image_size=64),
        _checkpoint("imagenet64_uncond_100M_1500K.pt", 121_063_942, 450, _UNCONDITIONAL, image_size=64),
        _checkpoint("imagenet64_uncond_vlb_100M_1500K.pt", 121_063_942, 450, _UNCONDITIONAL, image_size=64),
        _checkpoint("cifar10_uncond_50M_500K.pt", 52_546_438, 446, _UNCONDITIONAL, image_size=32),
        _checkpoint("cifar10_uncond_vlb_50M_500K.pt", 52_546_438, 446, _UNCONDITIONAL, image_size=32),
        _checkpoint("lsun_uncond_100M_1200K_bs128.pt", 113_676_678, 426, _LSUN),
        _checkpoint("lsun_uncond_100M_2400K_bs64.pt", 113_676_678, 426, _LSUN),
    ),
)
UPSAMPLER = replace(
    BASE,
    name="improved-diffusion-sr",
    build=partial(build, refines=True),
    checkpoints=(_checkpoint("upsample_cond_500K.pt", 279_792_390, 457, _UPSAMPLER),),
)
