"""EDM2's magnitude-preserving network (Karras et al. 2023, arXiv:2312.02696).

Family `edm2`; configurations hold the constructor arguments `init_kwargs` that a published pickle records. The published pixel
models were trained without dropping labels: no classifier-free guidance, but autoguidance by a second, weaker one
(arXiv:2406.02507).
"""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from torch import Tensor, nn

from cascade.stages.published import edm
from cascade.stages.published.family import Checkpoint, Config, section
from cascade.stages.published.heun import EDMHeunScheduler
from cascade.stages.published.openai_unet import attend, resample

_NEEDED = ("img_resolution", "img_channels", "label_dim", "model_channels")
_DEFAULTS: dict[str, Any] = {
    "channel_mult": [1, 2, 3, 4], "channel_mult_noise": None, "channel_mult_emb": None, "num_blocks": 3,
    "attn_resolutions": [16, 8], "label_balance": 0.5, "concat_balance": 0.5, "res_balance": 0.3, "attn_balance": 0.3,
    "clip_act": 256, "channels_per_head": 64, "logvar_channels": 128, "sigma_data": edm.SIGMA_DATA,
}  # fmt: skip
_WITHOUT_EFFECT = ("use_fp16", "dropout", "resample_filter")
RESAMPLE_FILTER = [1, 1]
"""Of all published networks: blocks are halved by means and doubled by repetition."""


def normalize(x: Tensor, dim: int | None = None) -> Tensor:
    """Scale to unit root mean square over `dim`, or over all but the first dimension."""
    dims = list(range(1, x.ndim)) if dim is None else [dim]
    length = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32)
    return x / torch.add(1e-4, length, alpha=math.sqrt(length.numel() / x.numel())).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """Weighted sum of unit variance, if both are uncorrelated and of unit variance (Eq. 88)."""
    return a.lerp(b, balance) / math.sqrt((1 - balance) ** 2 + balance**2)


def mp_cat(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """Concatenated channels of `a` and `b` that contribute to what follows as `balance` says (Eq. 103)."""
    total = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - balance) ** 2 + balance**2))
    return torch.cat([a * (total * (1 - balance) / math.sqrt(a.shape[1])), b * (total * balance / math.sqrt(b.shape[1]))], dim=1)


class MPFourier(nn.Module):
    """Random cosine features of values [B], of unit variance; frequencies and phases come with the weights."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float()[:, None] * self.freqs.float() + self.phases.float()).cos() * math.sqrt(2)


class MPConv(nn.Module):
    """Linear layer or convolution with weights of unit length for every output, normalised at each evaluation (Eq. 47)."""

    def __init__(self, channels: int, out_channels: int, *kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, channels, *kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        weight = normalize(self.weight.float())
        weight = (weight * (gain / math.sqrt(weight[0].numel()))).to(x.dtype)
        return x @ weight.t() if weight.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Block(nn.Module):
    """Magnitude-preserving residual block (figure 21, configuration G)."""

    def __init__(
        self, channels: int, out_channels: int, embedding_width: int, options: Config, *, decodes: bool = False,
        attends: bool = False, resample: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.options, self.decodes, self.resample = options, decodes, resample
        self.heads = out_channels // options["channels_per_head"] if attends else 0
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(channels if decodes else out_channels, out_channels, 3, 3)
        self.emb_linear = MPConv(embedding_width, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, 3, 3)
        self.conv_skip = MPConv(channels, out_channels, 1, 1) if channels != out_channels else nn.Identity()
        if self.heads:
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1, 1)
            self.attn_proj = MPConv(out_channels, out_channels, 1, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = resample(x, self.resample)
        if not self.decodes:
            x = normalize(self.conv_skip(x), dim=1)
        h = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(embedding, gain=self.emb_gain) + 1
        h = mp_silu(h * scale[:, :, None, None].to(h.dtype))
        h = self.conv_res1(F.dropout(h, self.options.get("dropout", 0), self.training))
        if self.decodes:
            x = self.conv_skip(x)
        x = mp_sum(x, h, self.options["res_balance"])
        if self.heads:
            x = mp_sum(x, self.attn_proj(self.attend(x)), self.options["attn_balance"])
        return x.clip(-self.options["clip_act"], self.options["clip_act"])

    def attend(self, x: Tensor) -> Tensor:
        """Attention as EDM's, [B, C, H, W], with normalised queries, keys and values."""
        qkv = self.attn_qkv(x).flatten(2)
        grouped = qkv.reshape(len(x), self.heads, -1, 3, qkv.shape[2])
        return attend(normalize(grouped, dim=2).reshape(qkv.shape), self.heads, "innermost").view_as(x)


class UNet(edm.EncoderDecoder):
    """The raw network F, called with the scaled image and `c_noise`."""

    def __init__(self, options: Config) -> None:
        width, noise, embedding = options["model_channels"], options["channel_mult_noise"], options["channel_mult_emb"]
        widths = [int(width * factor) for factor in options["channel_mult"]]
        noise_width = widths[0] if noise is None else int(width * noise)
        embedding_width = max(widths) if embedding is None else int(width * embedding)
        block = partial(Block, embedding_width=embedding_width, options=options)
        super().__init__(options, widths, MPConv(options["img_channels"] + 1, widths[0], 3, 3), block)
        self.options = options
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise_width)
        self.emb_noise = MPConv(noise_width, embedding_width)
        self.emb_label = MPConv(options["label_dim"], embedding_width) if options["label_dim"] else None
        self.out_conv = MPConv(widths[0], options["img_channels"], 3, 3)

    def forward(self, x: Tensor, c_noise: Tensor, label_vectors: Tensor) -> Tensor:
        dtype = self.out_conv.weight.dtype
        embedding = self.emb_noise(self.emb_fourier(c_noise).to(dtype))
        if self.emb_label is not None:
            labels = self.emb_label(label_vectors.to(dtype) * math.sqrt(label_vectors.shape[1]))
            embedding = mp_sum(embedding, labels, self.options["label_balance"])
        h = torch.cat([x, torch.ones_like(x[:, :1])], dim=1).to(dtype)
        return self.out_conv(self.through(h, mp_silu(embedding)), gain=self.out_gain)

    def join(self, h: Tensor, skip: Tensor) -> Tensor:
        return mp_cat(h, skip, self.options["concat_balance"])


def build(config: Config) -> edm.Preconditioned:
    """The raw network of a configuration; ValueError for another `resample_filter` than the published one."""
    given = section(config, "init_kwargs", _NEEDED, (*_DEFAULTS, *_WITHOUT_EFFECT))
    if (resample_filter := given.get("resample_filter", RESAMPLE_FILTER)) != RESAMPLE_FILTER:
        raise ValueError(f"resample_filter is {resample_filter!r}; only the published one, {RESAMPLE_FILTER}, is supported")
    options = {**_DEFAULTS, **given}
    network = edm.Preconditioned(options, "unet", UNet(options))
    # The uncertainty that training weighted the loss by (Eq. 22): files hold it, but no image depends on it.
    network.logvar_fourier = MPFourier(options["logvar_channels"])
    network.logvar_linear = MPConv(options["logvar_channels"], 1)
    return network


class EDM2Denoiser(edm.EDMDenoiser, ModelMixin):
    """An EDM2 pixel-space network as a denoiser that predicts x0."""

    build = staticmethod(build)


def sampler(config: Config) -> tuple[EDMHeunScheduler, dict[str, Any]]:
    """The deterministic sampler in 32 steps, with which the paper's figures were measured."""
    return EDMHeunScheduler(), {"num_inference_steps": 32}


def _checkpoint(size: str, training: str, parameters: int, width: int) -> Checkpoint:
    """A network by size; files are named by size, training length in thousands of images, and EMA length."""
    folder, file = "edm2/posthoc-reconstructions", f"edm2-img64-{size}-{training}.pkl"
    options = {"img_resolution": 64, "img_channels": 3, "label_dim": 1000, "model_channels": width}
    return edm.checkpoint(folder, file, parameters, 203, options, rf"edm2-img64-{size}-\d{{7}}-\d\.\d{{3}}\.pkl")


FAMILY = edm.family(
    name="edm2",
    project="https://github.com/NVlabs/edm2",
    config_keys=("init_kwargs",),
    build=build,
    denoiser=EDM2Denoiser,
    sampler=sampler,
    pickled_classes=frozenset({"Precond", "UNet", "Block", "MPConv", "MPFourier", "ModuleDict"}),
    checkpoints=(
        _checkpoint("xs", "0134217-0.110", 124_710_949, 128),
        _checkpoint("s", "1073741-0.075", 280_209_381, 192),
        _checkpoint("m", "2147483-0.060", 497_803_173, 256),
        _checkpoint("l", "1073741-0.040", 777_492_325, 320),
        _checkpoint("xl", "0671088-0.040", 1_119_276_837, 384),
    ),
)
