"""EDM2's magnitude-preserving network (Karras et al. 2023, arXiv:2312.02696).

Family `edm2`; configurations hold the constructor arguments `init_kwargs` that a published pickle records. The published pixel
models were trained without dropping labels: no classifier-free guidance, but autoguidance by a second, weaker one
(arXiv:2406.02507).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from torch import Tensor, nn

from cascade.stages.noise import like_image
from cascade.stages.published.adm import upsample
from cascade.stages.published.clock import SigmaDenoiser
from cascade.stages.published.edm import SIGMA_DATA, label_vectors, preconditioning
from cascade.stages.published.options import section

_NEEDED = ("img_resolution", "img_channels", "label_dim", "model_channels")
_DEFAULTS: dict[str, Any] = {
    "channel_mult": [1, 2, 3, 4], "channel_mult_noise": None, "channel_mult_emb": None, "num_blocks": 3,
    "attn_resolutions": [16, 8], "label_balance": 0.5, "concat_balance": 0.5, "res_balance": 0.3, "attn_balance": 0.3,
    "clip_act": 256, "channels_per_head": 64, "logvar_channels": 128, "sigma_data": SIGMA_DATA,
}  # fmt: skip
_WITHOUT_EFFECT = ("use_fp16", "dropout")


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
        self, channels: int, out_channels: int, embedding_width: int, options: Mapping[str, Any], *, decodes: bool,
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
        if self.resample is not None:
            x = upsample(x) if self.resample == "up" else F.avg_pool2d(x, 2)
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
            x = mp_sum(x, self.attn_proj(attend(self.attn_qkv(x), self.heads)), self.options["attn_balance"])
        return x.clip(-self.options["clip_act"], self.options["clip_act"])


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Attention of [B, 3C, H, W] to [B, C, H, W], whose channels run over (head, channel, qkv); all three are normalised."""
    b, channels, height, width = qkv.shape
    qkv = normalize(qkv.reshape(b, heads, channels // 3 // heads, 3, height * width), dim=2)
    q, k, v = qkv.transpose(2, 4).unbind(3)
    return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, channels // 3, height, width)


class UNet(nn.Module):
    """The raw network F of `EDM2Network`, called with the scaled image and `c_noise`."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        size, mult, attending = options["img_resolution"], options["channel_mult"], options["attn_resolutions"]
        widths = [int(options["model_channels"] * factor) for factor in mult]
        noise, embedding = options["channel_mult_noise"], options["channel_mult_emb"]
        noise_width = widths[0] if noise is None else int(options["model_channels"] * noise)
        embedding_width = max(widths) if embedding is None else int(options["model_channels"] * embedding)
        self.options = options
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise_width)
        self.emb_noise = MPConv(noise_width, embedding_width)
        self.emb_label = MPConv(options["label_dim"], embedding_width) if options["label_dim"] else None

        def block(channels: int, out_channels: int, **settings: Any) -> Block:
            return Block(channels, out_channels, embedding_width, options, **settings)

        self.enc = nn.ModuleDict()
        current, skips = options["img_channels"] + 1, []
        for level, width in enumerate(widths):
            side = size >> level
            if level == 0:
                self.enc[f"{side}x{side}_conv"] = MPConv(current, width, 3, 3)
                current = width
            else:
                self.enc[f"{side}x{side}_down"] = block(current, current, decodes=False, resample="down")
            skips.append(current)
            for i in range(options["num_blocks"]):
                self.enc[f"{side}x{side}_block{i}"] = block(current, width, decodes=False, attends=side in attending)
                current = width
                skips.append(current)
        self.dec = nn.ModuleDict()
        for level, width in reversed(list(enumerate(widths))):
            side = size >> level
            if level == len(widths) - 1:
                self.dec[f"{side}x{side}_in0"] = block(current, current, decodes=True, attends=True)
                self.dec[f"{side}x{side}_in1"] = block(current, current, decodes=True)
            else:
                self.dec[f"{side}x{side}_up"] = block(current, current, decodes=True, resample="up")
            for i in range(options["num_blocks"] + 1):
                name = f"{side}x{side}_block{i}"
                self.dec[name] = block(current + skips.pop(), width, decodes=True, attends=side in attending)
                current = width
        self.out_conv = MPConv(current, options["img_channels"], 3, 3)

    def forward(self, x: Tensor, c_noise: Tensor, label_vectors: Tensor | None) -> Tensor:
        dtype = self.out_conv.weight.dtype
        embedding = self.emb_noise(self.emb_fourier(c_noise).to(dtype))
        if self.emb_label is not None and label_vectors is not None:
            labels = self.emb_label(label_vectors.to(dtype) * math.sqrt(label_vectors.shape[1]))
            embedding = mp_sum(embedding, labels, self.options["label_balance"])
        embedding = mp_silu(embedding)
        h, skips = torch.cat([x, torch.ones_like(x[:, :1])], dim=1).to(dtype), []
        for layer in self.enc.values():
            h = layer(h, embedding) if isinstance(layer, Block) else layer(h)
            skips.append(h)
        for name, layer in self.dec.items():
            h = layer(mp_cat(h, skips.pop(), self.options["concat_balance"]) if "block" in name else h, embedding)
        return self.out_conv(h, gain=self.out_gain)


class EDM2Network(nn.Module):
    """The raw network with its preconditioning: `network(x, sigma, class_labels)` gives the denoised image D(x; sigma)."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.sigma_data, self.label_dim = options["sigma_data"], options["label_dim"]
        self.unet = UNet(options)
        self.logvar_fourier = MPFourier(options["logvar_channels"])
        self.logvar_linear = MPConv(options["logvar_channels"], 1)

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Denoised images, shape and number type of `x`.

        Args:
            x: Noisy images `x0 + sigma eps`, unscaled, [B, C, H, W].
            sigma: Noise std, [B].
            class_labels: One-hot [B, label_dim], or indices int64 [B]; None = a zero vector, which these networks were not
                trained for.
        """
        c_skip, c_out, c_in = preconditioning(sigma, self.sigma_data)
        labels = label_vectors(class_labels, x, self.label_dim)
        output = self.unet(like_image(c_in, x) * x, sigma.log() / 4, labels)
        return like_image(c_skip, x) * x + like_image(c_out, x) * output.to(x)

    def logvar(self, sigma: Tensor) -> Tensor:
        """The uncertainty that training weighted the loss by, [B], for noise std `sigma` [B] (Eq. 22)."""
        features = self.logvar_fourier(sigma.log() / 4)
        return self.logvar_linear(features)[:, 0]


def build(config: Mapping[str, Any]) -> EDM2Network:
    """The raw network of a configuration.

    Raises:
        ValueError: if an option is missing or unknown.
    """
    given = section(config, "init_kwargs", _NEEDED, (*_DEFAULTS, *_WITHOUT_EFFECT))
    return EDM2Network({**_DEFAULTS, **given})


class EDM2Denoiser(SigmaDenoiser, ModelMixin):
    """An EDM2 pixel-space network as a denoiser that predicts x0."""

    network: EDM2Network

    def setup(self, published: Mapping[str, Any]) -> tuple[int, int | None]:
        self.network = build(published)
        self.num_classes = published["init_kwargs"]["label_dim"] or None
        return published["init_kwargs"]["img_resolution"], None

    def forward(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        class_labels: Tensor | None = None,
        low_res: Tensor | None = None,
        aug_level: Tensor | None = None,
    ) -> Tensor:
        """As `Denoiser.__call__`; a base model, so `low_res` and `aug_level` are ignored."""
        return self.network(*self.exploding(x_t, log_snr), class_labels)
