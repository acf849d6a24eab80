"""guided-diffusion, known as ADM: base models, upsamplers and guiding classifiers (Dhariwal & Nichol 2021, arXiv:2105.05233).

Families `guided-diffusion`, `guided-diffusion-sr` and `guided-diffusion-classifier`; configurations hold the flags of the
project's scripts. The base models know no null class: guidance is by a classifier (`ClassifierGuidance`), not classifier-free.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from cascade.stages.denoiser import ClassifierGuidance
from cascade.stages.published import openai_flags, openai_unet
from cascade.stages.published.family import Config, section
from cascade.stages.published.openai_flags import FLAGS, WITHOUT_EFFECT, OpenAIDenoiser, architecture

BY_SIZE = {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4), 512: (0.5, 1, 1, 2, 2, 4, 4)}
BY_SIZE_SR = {64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4), 512: (1, 1, 2, 2, 4, 4)}
_FLAGS = ("num_head_channels", "resblock_updown", *FLAGS)
_OPTIONAL = ("num_heads_upsample", "channel_mult", *WITHOUT_EFFECT)


def build(config: Config, refines: bool) -> openai_unet.UNet:
    """The raw network of a configuration, `network(x, timesteps, y)`; of an upsampler, `network(x, timesteps, low_res, y)`.

    An upsampler's attention order is always the legacy one.
    """
    if refines:
        flags = section(config, "flags", ("large_size", "small_size", *_FLAGS), _OPTIONAL)
        return openai_unet.SuperResUNet(architecture(config, flags, BY_SIZE_SR, flags["large_size"], in_channels=6))
    flags = section(config, "flags", ("image_size", "use_new_attention_order", *_FLAGS), _OPTIONAL)
    order = "new" if flags["use_new_attention_order"] else "legacy"
    return openai_unet.UNet(architecture(config, flags, BY_SIZE, flags["image_size"], attention_order=order))


class GuidedDiffusionDenoiser(OpenAIDenoiser, ModelMixin):
    """An ADM base model or upsampler as a denoiser."""

    build = staticmethod(build)


class AttentionPool(nn.Module):
    """Attention of the mean feature over all positions, the classifier's last layer; [B, C, s, s] to [B, out]."""

    def __init__(self, side: int, channels: int, head_channels: int, out_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.positional_embedding = nn.Parameter(torch.randn(channels, side**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        x = torch.cat([x.mean(dim=-1, keepdim=True), x], dim=-1) + self.positional_embedding
        return self.c_proj(openai_unet.attend(self.qkv_proj(x), self.heads, "new"))[:, :, 0]


class Classifier(openai_unet.ContractingHalf):
    """The contracting half of an ADM network as a classifier: `network(x, timesteps)` gives logits [B, classes]."""

    def __init__(self, arch: openai_unet.Architecture, side: int) -> None:
        super().__init__(arch)
        width = self.widths[-1]
        pool = AttentionPool(side, width, arch.head_channels or width, arch.out_channels)
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), pool)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Logits [B, classes] of noisy images `x` [B, 3, H, W] at `timesteps` [B] of the diffusion model's own clock."""
        h, _ = self.contract(x, self.embed(timesteps))
        return self.out(h)


def build_classifier(config: Config) -> Classifier:
    """The raw classifier of a configuration. Only the published pooling, "attention", is known."""
    flags = section(config, "flags", ("image_size", *_CLASSIFIER), ("classifier_use_fp16",))
    if flags["classifier_pool"] != "attention":
        raise ValueError(
            f"classifier_pool is {flags['classifier_pool']!r}; only the published pooling, 'attention', is supported"
        )
    as_unet = {name.removeprefix("classifier_"): value for name, value in flags.items()}
    as_unet |= {"num_channels": as_unet["width"], "num_res_blocks": as_unet["depth"]}
    as_unet |= {"learn_sigma": False, "num_heads": 1, "class_cond": False}
    out = {"head_channels": 64, "out_channels": config.get("num_classes", openai_flags.IMAGENET_CLASSES)}
    arch = architecture(config, as_unet, BY_SIZE, flags["image_size"], **out)
    return Classifier(arch, side=flags["image_size"] // 2 ** (len(arch.widths) - 1))


class GuidedDiffusionClassifier(ModelMixin, ConfigMixin):
    """A classifier of noisy images as a stage's `guide_unet`; called as its network, with the clock of the model that it guides.

    Args:
        published: The family's own configuration, as `cascade.stages.published.load` takes it.
    """

    @register_to_config
    def __init__(self, published: Config) -> None:
        super().__init__()
        self.network = build_classifier(published)
        self.num_classes = self.network.arch.out_channels

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return self.network(x, timesteps)

    def guide(self, denoiser: Any, guidance_scale: float, interval: tuple[float, float] | None) -> ClassifierGuidance:
        """A denoiser guided by this; 1 = no guidance, so the published strength s of a classifier is 1 + s.

        Classifier-free guidance adds `guidance_scale - 1` gradients of log p(class | x_t) to the score too.
        """
        return ClassifierGuidance(denoiser, self, guidance_scale - 1, interval)


_ADM: dict[str, Any] = {
    "num_channels": 256, "num_res_blocks": 2, "num_heads": 4, "num_head_channels": 64, "attention_resolutions": "32,16,8",
    "class_cond": True, "use_scale_shift_norm": True, "resblock_updown": True, "learn_sigma": True, "diffusion_steps": 1000,
    "noise_schedule": "linear", "predict_xstart": False, "rescale_timesteps": False,
}  # fmt: skip
_ADM_BASE = {**_ADM, "use_new_attention_order": False}
_ADM_64 = {
    **_ADM_BASE, "image_size": 64, "num_channels": 192, "num_res_blocks": 3, "noise_schedule": "cosine",
    "use_new_attention_order": True,
}  # fmt: skip
_UNCONDITIONAL = {**_ADM_BASE, "image_size": 256, "class_cond": False}
_LSUN = ("bedroom", "cat", "horse", "horse_nodropout")
_SR = {**_ADM, "num_channels": 192}
_CLASSIFIER: dict[str, Any] = {
    "classifier_width": 128, "classifier_depth": 2, "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True, "classifier_resblock_updown": True, "classifier_pool": "attention",
}  # fmt: skip
_checkpoint = partial(openai_flags.checkpoint, "diffusion/jul-2021")

BASE = openai_flags.family(
    name="guided-diffusion",
    project="https://github.com/openai/guided-diffusion",
    build=partial(build, refines=False),
    denoiser=GuidedDiffusionDenoiser,
    checkpoints=(
        _checkpoint("64x64_diffusion.pt", 295_904_454, 541, _ADM_64),
        _checkpoint("128x128_diffusion.pt", 421_529_606, 493, _ADM_BASE, image_size=128, num_head_channels=-1),
        _checkpoint("256x256_diffusion.pt", 553_838_086, 567, _ADM_BASE, image_size=256),
        _checkpoint("256x256_diffusion_uncond.pt", 552_814_086, 566, _UNCONDITIONAL),
        _checkpoint("512x512_diffusion.pt", 558_997_638, 645, _ADM_BASE, image_size=512),
        *(_checkpoint(f"lsun_{name}.pt", 552_814_086, 566, _UNCONDITIONAL) for name in _LSUN),
    ),
)
UPSAMPLER = replace(
    BASE,
    name="guided-diffusion-sr",
    build=partial(build, refines=True),
    checkpoints=(
        _checkpoint("64_256_upsampler.pt", 311_795_910, 567, _SR, large_size=256, small_size=64, num_head_channels=-1),
        _checkpoint("128_512_upsampler.pt", 308_835_270, 537, _SR, large_size=512, small_size=128, attention_resolutions="32,16"),
    ),
)
CLASSIFIER = replace(
    BASE,
    name="guided-diffusion-classifier",
    build=build_classifier,
    denoiser=None,
    sampler=None,
    classifier=GuidedDiffusionClassifier,
    checkpoints=(
        _checkpoint("64x64_classifier.pt", 65_438_568, 307, _CLASSIFIER, image_size=64, classifier_depth=4),
        _checkpoint("128x128_classifier.pt", 42_568_040, 221, _CLASSIFIER, image_size=128),
        _checkpoint("256x256_classifier.pt", 54_096_360, 249, _CLASSIFIER, image_size=256),
        _checkpoint("512x512_classifier.pt", 54_448_360, 281, _CLASSIFIER, image_size=512),
    ),
)
