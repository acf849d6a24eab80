"""The unofficial SR3 by Janspiry, in its two variants: a network that sees the noise level, and one that sees the step.

Families `sr3` (Saharia et al. 2021, arXiv:2104.07636, as that project reads it) and `sr3-ddpm`; configurations hold that
project's own `unet`, `diffusion` and `beta_schedule` sections. Published weights make faces, without classes.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, ModelMixin
from torch import Tensor, nn

from cascade.stages.noise import LinearSchedule, alpha_bar_of
from cascade.stages.published.denoisers import PublishedDenoiser, steps_of
from cascade.stages.published.family import Checkpoint, Config, Family, section
from cascade.stages.published.openai_unet import attend, frequencies, resampling

SCHEDULE_BUFFERS = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip
"""Tensors that a published file holds beside the network's."""

_UNET = ("in_channel", "out_channel", "inner_channel", "norm_groups", "channel_multiplier", "attn_res", "res_blocks")


class Features(nn.Module):
    """Sines, then cosines, of values [B]; float32 [B, width]. Frequencies that the file has (`stored`) are a buffer."""

    inv_freq: Tensor | None

    def __init__(self, width: int, stored: bool) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("inv_freq", frequencies(width) if stored else None)

    def forward(self, values: Tensor) -> Tensor:
        own = frequencies(self.width, values.device) if self.inv_freq is None else self.inv_freq.float()
        angles = values.float()[:, None] * own
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def named(name: str, *layers: nn.Module) -> nn.Sequential:
    """Layers in a row, under a name of their own in the weights' names."""
    return nn.Sequential(OrderedDict({name: nn.Sequential(*layers)}))


def norm_act_conv(channels: int, out_channels: int, groups: int, dropout: float = 0.0) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out_channels, 3, padding=1)
    return named("block", nn.GroupNorm(groups, channels), nn.SiLU(), nn.Dropout(dropout), convolution)


class ResBlock(nn.Module):
    """Residual block; the embedding is added between the convolutions, activated first in the `stepped` variant."""

    def __init__(self, channels: int, out_channels: int, unet: Config, stepped: bool) -> None:
        super().__init__()
        linear = nn.Linear(unet["inner_channel"], out_channels)
        if stepped:
            self.mlp = nn.Sequential(nn.SiLU(), linear)
        else:
            self.noise_func = named("noise_func", linear)
        self.stepped = stepped
        self.block1 = norm_act_conv(channels, out_channels, unet["norm_groups"])
        self.block2 = norm_act_conv(out_channels, out_channels, unet["norm_groups"], unet.get("dropout", 0))
        self.res_conv = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift = (self.mlp if self.stepped else self.noise_func)(embedding)
        return self.block2(self.block1(x) + shift[:, :, None, None]) + self.res_conv(x)


class Attention(nn.Module):
    """Self-attention of one head, added to its input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = attend(self.qkv(self.norm(x)).flatten(2), 1, "new")
        return x + self.out(h.view_as(x))


class AttendingBlock(nn.Module):
    """Residual block, with attention after it or without."""

    def __init__(self, channels: int, out_channels: int, unet: Config, stepped: bool, attends: bool) -> None:
        super().__init__()
        self.res_block = ResBlock(channels, out_channels, unet, stepped)
        self.attn = Attention(out_channels, unet["norm_groups"]) if attends else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attn(self.res_block(x, embedding))


class SR3Network(nn.Module):
    """The raw network: `network(x, cond, noise_level)` or, `stepped`, `network(x, cond, t)` gives the predicted noise."""

    def __init__(self, unet: Config, size: int, stepped: bool) -> None:
        super().__init__()
        width, blocks = unet["inner_channel"], unet["res_blocks"]
        widths = [width * factor for factor in unet["channel_multiplier"]]
        self.stepped = stepped
        mlp = nn.Sequential(Features(width, stepped), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.add_module("time_mlp" if stepped else "noise_level_mlp", mlp)

        block = partial(AttendingBlock, unet=unet, stepped=stepped)
        self.downs = nn.ModuleList([nn.Conv2d(unet["in_channel"], width, 3, padding=1)])
        current, skips = width, [width]
        for level, out in enumerate(widths):
            for _ in range(blocks):
                self.downs.append(block(current, out, attends=size >> level in unet["attn_res"]))
                current = out
                skips.append(current)
            if level < len(widths) - 1:
                self.downs.append(resampling(current, up=False))
                skips.append(current)
        self.mid = nn.ModuleList([block(current, current, attends=attends) for attends in (True, False)])
        self.ups = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.ups.append(block(current + skips.pop(), out, attends=size >> level in unet["attn_res"]))
                current = out
            if level:
                self.ups.append(resampling(current, up=True))
        self.final_conv = norm_act_conv(current, unet["out_channel"], unet["norm_groups"])

    def forward(
        self, x: Tensor, cond: Tensor | None = None, noise_level: Tensor | None = None, t: Tensor | None = None
    ) -> Tensor:
        """Predicted noise in noisy images `x`, [B, 3, H, W] in the number type of the weights.

        `cond` are images to refine, in [-1, 1], already upsampled to the size of `x`; None for an unconditional network. `sr3`
        sees `noise_level`, sqrt(alpha_bar) in [0, 1], [B] or [B, 1]; `sr3-ddpm` the step `t`, [B]. ValueError if it is missing.
        """
        noise = t if self.stepped else noise_level
        if noise is None:
            raise ValueError(f"this network sees the {'step: t' if self.stepped else 'noise level: noise_level'} is missing")
        mlp: Any = self.get_submodule("time_mlp" if self.stepped else "noise_level_mlp")
        dtype = mlp[1].weight.dtype
        embedding = mlp[1:](mlp[0](noise.flatten()).to(dtype))
        h, skips = (x if cond is None else torch.cat([cond, x], dim=1)).to(dtype), []
        for layer in self.downs:
            h = layer(h, embedding) if isinstance(layer, AttendingBlock) else layer(h)
            skips.append(h)
        for layer in self.mid:
            h = layer(h, embedding)
        for layer in self.ups:
            h = layer(torch.cat([h, skips.pop()], dim=1), embedding) if isinstance(layer, AttendingBlock) else layer(h)
        return self.final_conv(h)


def build(config: Config, stepped: bool) -> SR3Network:
    """The raw network of a configuration of family `sr3` or, `stepped`, `sr3-ddpm`."""
    diffusion = section(config, "diffusion", ("image_size",), ("channels", "conditional"))
    return SR3Network(section(config, "unet", _UNET, ("dropout",)), diffusion["image_size"], stepped)


def schedule(config: Config, sampling: bool = False) -> LinearSchedule:
    """The noise schedule of training, or the one that the project samples by, if there is another; ValueError unless linear."""
    name = "sampling_beta_schedule" if sampling and "sampling_beta_schedule" in config else "beta_schedule"
    options = section(config, name, ("schedule", "n_timestep", "linear_start", "linear_end"))
    if options["schedule"] != "linear":
        raise ValueError(f"the {name} is {options['schedule']!r}, but only 'linear', that of the published weights, is supported")
    return LinearSchedule(beta_start=options["linear_start"], beta_end=options["linear_end"], num_steps=options["n_timestep"])


def network_tensors(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The network's own tensors of a published file; ValueError if its schedule is not that of the configuration."""
    betas, options = tensors.get("betas"), schedule(config)
    if betas is not None:
        expected = torch.linspace(options.beta_start, options.beta_end, options.num_steps, dtype=torch.float64)
        if betas.shape != expected.shape or not torch.allclose(betas.double(), expected, rtol=1e-3):
            raise ValueError(
                f"the file was saved with {len(betas)} steps of beta from {betas.min():g} to {betas.max():g}, but"
                f" the configuration's beta_schedule has {options.num_steps} from {options.beta_start:g} to {options.beta_end:g}"
            )
    return {key.removeprefix("denoise_fn."): value for key, value in tensors.items() if key not in SCHEDULE_BUFFERS}


def upsampled(low_res: Tensor, size: int) -> Tensor:
    """Images to refine at the size of the result, by the bicubic kernel of the image files that these networks saw."""
    return F.interpolate(low_res.float(), size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)


class JanspirySR3Denoiser(PublishedDenoiser, ModelMixin):
    """The `sr3` variant as a denoiser: the network sees sqrt(alpha_bar), so it takes any noise level. There are no classes."""

    network: SR3Network
    stepped = False

    def setup(self, published: Config) -> tuple[int, int | None]:
        self.network, self.table = build(published, self.stepped), schedule(published, sampling=True).table()
        size = published["diffusion"]["image_size"]
        return size, published.get("low_res_size", size) if published["diffusion"].get("conditional", True) else None

    def predict(self, x_t: Tensor, log_snr: Tensor, class_labels: Tensor | None, low_res: Tensor | None) -> Tensor:
        cond = None if low_res is None else upsampled(low_res, x_t.shape[-1])
        if self.stepped:
            return self.network(x_t, cond, t=steps_of(log_snr, self.table))
        return self.network(x_t, cond, noise_level=alpha_bar_of(log_snr.double()).sqrt().float())


class JanspiryDDPMDenoiser(JanspirySR3Denoiser, ModelMixin):
    """The `sr3-ddpm` variant as a denoiser: the network sees a step of the schedule that the project samples by."""

    stepped = True


def sampler(config: Config) -> tuple[DDPMScheduler, dict[str, Any]]:
    """Ancestral sampling over all steps of the schedule that the project samples by, exactly the original."""
    linear = schedule(config, sampling=True)
    betas = {"beta_start": linear.beta_start, "beta_end": linear.beta_end, "num_train_timesteps": linear.num_steps}
    scheduler = DDPMScheduler(beta_schedule="linear", variance_type="fixed_small", clip_sample=True, **betas)
    return scheduler, {"num_inference_steps": linear.num_steps}


_PROJECT = "https://github.com/Janspiry/Image-Super-Resolution-via-Iterative-Refinement"
_UNET_16_128 = {
    "in_channel": 6, "out_channel": 3, "inner_channel": 64, "channel_multiplier": [1, 2, 4, 8, 8], "norm_groups": 32,
    "res_blocks": 2, "attn_res": [16], "dropout": 0.2,
}  # fmt: skip
_UNET_64_512 = {**_UNET_16_128, "channel_multiplier": [1, 2, 4, 8, 16], "norm_groups": 16, "res_blocks": 1, "attn_res": []}


def _checkpoint(file: str, parameters: int, keys: int, low_res_size: int, size: int, unet: Config) -> Checkpoint:
    config = {
        "unet": unet,
        "diffusion": {"image_size": size, "channels": 3, "conditional": True},
        "beta_schedule": {"schedule": "linear", "n_timestep": 2000, "linear_start": 1e-6, "linear_end": 0.01},
        "low_res_size": low_res_size,
    }
    return Checkpoint(file=file, config=config, url=_PROJECT, parameters=parameters, keys=keys)


SR3 = Family(
    name="sr3",
    project=_PROJECT,
    licence="Apache-2.0",
    config_keys=("unet", "diffusion", "beta_schedule", "sampling_beta_schedule", "low_res_size"),
    config_hint="the sections 'unet', 'diffusion' and 'beta_schedule' of the project's JSON file",
    build=partial(build, stepped=False),
    denoiser=JanspirySR3Denoiser,
    sampler=sampler,
    own_tensors=network_tensors,
    checkpoints=(
        _checkpoint("I640000_E37_gen.pth", 97_807_491, 362, 16, 128, _UNET_16_128),
        _checkpoint("I830000_E32_gen.pth", 155_334_339, 229, 64, 512, _UNET_64_512),
    ),
)
DDPM = replace(SR3, name="sr3-ddpm", build=partial(build, stepped=True), denoiser=JanspiryDDPMDenoiser, checkpoints=())
