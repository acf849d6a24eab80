"""The U-Net of our own stages. Its module path is written into every saved stage: this file never moves.

One network for SR3's published architectures and for efficient ones:

* `layout="sr3"`: a DDPM U-Net with BigGAN residual blocks and skips scaled by 1/sqrt(2) (Saharia et al. 2021, arXiv:2104.07636,
  appendix A): every encoder feature has a skip, up- and downsampling blocks keep their width and resample before their first
  convolution.
* `layout="efficient"`: one skip a level, the first block of a level takes over the downsampling, and upsampling comes after the
  block's first convolution (Saharia et al. 2022, arXiv:2205.11487, appendix B.1), so most work is done at low resolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from cascade.stages.denoiser import PREDICTION_TYPES, Denoiser, Wrapper
from cascade.stages.graphs import graphs_of
from cascade.stages.noise import like_image, resolution_shift, signal_and_noise

LOG_SNR_SCALE = 12.5
AUG_LEVEL_SCALE = 250.0
MOST_WIDTH, MOST_BLOCKS, MOST_CLASSES = 2**15, 1_000, 1_000_000  # pixels or channels, and blocks of all levels
"""Scales that spread log_snr (within +-20) and aug_level (0 to 1) over 250 units of a sinusoidal embedding."""


def sinusoidal_embedding(values: Tensor, width: int) -> Tensor:
    """Cosines and sines of `values` [B] at `width / 2` periods from 2 pi to 2 pi * 10000; float32 [B, width]."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=values.device, dtype=torch.float32) / half)
    angles = values.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class PixelNorm(nn.LayerNorm):
    """Layer normalisation of every pixel over its channels, as in ConvNeXt (arXiv:2201.03545); fast on channels_last images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _norm(kind: str, channels: int) -> nn.Module:
    return PixelNorm(channels) if kind == "pixel" else nn.GroupNorm(math.gcd(32, channels), channels)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _resample(x: Tensor, factor: float) -> Tensor:
    return F.avg_pool2d(x, 2) if factor < 1 else F.interpolate(x, scale_factor=2.0, mode="nearest")


def _doubled(x: Tensor) -> Tensor:
    """Images twice as large by bicubic interpolation; where gradients flow, by its matrices.

    Its own backward pass adds up atomically on a CUDA device: slow, and in an order that changes the bits.
    """
    if not x.requires_grad:
        return F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    rows = _doubling(x.shape[-2], x.device)
    return rows @ x @ (rows if x.shape[-1] == x.shape[-2] else _doubling(x.shape[-1], x.device)).mT


@cache
def _doubling(size: int, device: torch.device) -> Tensor:
    """What bicubic interpolation does to a column of `size` pixels: a matrix, float32 [2 * size, size]."""
    columns = torch.eye(size).view(size, 1, size, 1).expand(-1, -1, -1, 8)
    made = F.interpolate(columns, scale_factor=2, mode="bicubic", align_corners=False)[:, 0, :, 8]
    return made.T.contiguous().to(device)


class ResidualBlock(nn.Module):
    """BigGAN residual block with scale and shift by the embedding; the sum with its skip is scaled by 1/sqrt(2).

    Args:
        factor: 1, 0.5 (average pool before the first convolution) or 2 (nearest neighbours, before or after it).
        upsample_late: Upsample after the first convolution, at a quarter of its cost.
        attention_heads: Heads of the self-attention after the block; 0 = none.
        gives_skip: Whether its output is kept for the decoder.
        takes_skip: Whether its input has a kept output of the encoder concatenated, counted in `in_channels`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_width: int,
        *,
        norm: str,
        dropout: float,
        factor: float = 1,
        upsample_late: bool = False,
        attention_heads: int = 0,
        gives_skip: bool = False,
        takes_skip: bool = False,
    ) -> None:
        super().__init__()
        self.gives_skip, self.takes_skip = gives_skip, takes_skip
        self.factor, self.upsample_late, self.dropout = factor, upsample_late, dropout
        self.norm1 = _norm(norm, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(embedding_width, 2 * out_channels)
        self.norm2 = _norm(norm, out_channels)
        self.conv2 = _zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.attention = Attention(out_channels, attention_heads, norm) if attention_heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Features [B, in, h, w] and embedding [B, embedding_width] to features [B, out, h * factor, w * factor]."""
        h = F.silu(self.norm1(x))
        if self.factor != 1 and not self.upsample_late:
            h, x = _resample(h, self.factor), _resample(x, self.factor)
        h = self.conv1(h)
        x = self.skip(x)
        if self.upsample_late:
            h, x = _resample(h, self.factor), _resample(x, self.factor)
        scale, shift = self.embedding(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        h = self.conv2(F.dropout(h, self.dropout, self.training))
        x = (x + h) * math.sqrt(0.5)
        return x if self.attention is None else self.attention(x)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Fused attention of [B, heads, tokens, width]; in float32 on a CPU, as bfloat16 is up to 6 times slower there backwards."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


class Attention(nn.Module):
    """Self-attention over all positions, fused; the sum with its input is scaled by 1/sqrt(2)."""

    def __init__(self, channels: int, heads: int, norm: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(norm, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, C, h, w] to the same shape."""
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(b, height * width, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        h = _attend(q, k, v).transpose(1, 2).reshape(b, height, width, c)
        return (x + self.out(h.permute(0, 3, 1, 2))) * math.sqrt(0.5)


class _Precondition:
    """EDM's preconditioning (arXiv:2206.00364, Eq. 7) of `x0 - upsampled`, of std s, in a noisy image of log-SNR [B].

    The noisy details `x_t - alpha * upsampled` have the variance `V = s^2 alpha^2 + sigma_vp^2`. The best linear estimate of x0
    from them is `upsampled + s^2 alpha / V * (x_t - alpha * upsampled)`, and its error has the std `s sigma_vp / sqrt(V)`.
    """

    def __init__(self, std: float, x_t: Tensor, upsampled: Tensor, log_snr: Tensor) -> None:
        alpha, sigma_vp = (like_image(a, x_t) for a in signal_and_noise(log_snr))
        total = (std**2 * alpha**2 + sigma_vp**2).sqrt()
        self.details = (x_t - alpha * upsampled) / total
        self.linear = upsampled + std**2 * alpha / total * self.details
        self.error_std = std * sigma_vp / total

    def x0(self, output: Tensor) -> Tensor:
        """x0 by a network's output: the linear estimate, and `output` in units of its error's std."""
        return self.linear + self.error_std * output


class UNet(ModelMixin, ConfigMixin):
    """Denoising U-Net with inputs of its own for noise level, class, low-resolution image and augmentation level. A `Denoiser`.

    Args:
        sample_size: Side of the images it makes; other sizes divisible by `patch_size * 2^(levels - 1)` run too (crops).
        low_res_size: Side of the conditioning images; None for a base stage.
        num_classes: Number of classes; None for an unconditional network.
        null_class: Whether it was trained with dropped labels, so that label `num_classes` means "no class".
        aug_level: Whether it sees the augmentation level of its low-resolution input.
        prediction_type: What it predicts: "epsilon", "sample" or "v_prediction".
        channels: Width of each level, finest first.
        blocks: Residual blocks of each level.
        attention_sizes: Sides of the feature maps, at `sample_size`, whose blocks attend. The middle always attends.
        head_channels: Width of an attention head.
        patch_size: Space-to-depth at the input and back at the output; 1 = none.
        layout: "sr3" or "efficient", see the module's text.
        norm: "group" (32 groups) or "pixel" (every pixel over its channels, much faster on a CPU).
        dropout: Inside residual blocks, in training.
        low_res_skip: Add the upsampled low-resolution image to the output, so that a network that predicts "sample" starts as
            bicubic interpolation and learns what that lacks.
        detail_std: Std of what the upsampled image lacks, in pixel values of [-1, 1]; None = not said. With it, the noisy image
            is seen as noisy details of unit variance, and the network starts as the best linear denoiser of details of that std:
            EDM's preconditioning (Karras et al. 2022, arXiv:2206.00364, table 1) with sigma_data = detail_std, around the
            upsampled image. A loss weights its noise levels by how much of the details they hide.
        coarse_below: Images noisier than this log-SNR are denoised at half their size, at a quarter of the cost: such noise hides
            what is finer. Only images of `sample_size` are; None = none.

    Raises:
        ValueError: for settings that don't describe a network.
    """

    config: Any
    _supports_gradient_checkpointing = True
    _no_split_modules = _repeated_blocks = ["ResidualBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        low_res_size: int | None = None,
        num_classes: int | None = None,
        null_class: bool = True,
        aug_level: bool = False,
        prediction_type: str = "v_prediction",
        channels: Sequence[int] = (128, 256, 256, 512),
        blocks: Sequence[int] = (2, 2, 2, 2),
        attention_sizes: Sequence[int] = (16, 8),
        head_channels: int = 64,
        patch_size: int = 1,
        layout: str = "sr3",
        norm: str = "group",
        dropout: float = 0.0,
        low_res_skip: bool = False,
        detail_std: float | None = None,
        coarse_below: float | None = None,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        width = 4 * channels[0]
        self.gradient_checkpointing = False
        self.noise_embedding = _mlp(channels[0], width)
        self.class_embedding = nn.Embedding(num_classes + null_class, width) if num_classes is not None else None
        self.aug_embedding = _mlp(channels[0], width) if aug_level else None
        images = 1 if low_res_size is None else 2
        self.conv_in = nn.Conv2d(images * 3 * patch_size**2, channels[0], 3, padding=1)
        build = _build_sr3 if layout == "sr3" else _build_efficient
        self.encoder, self.middle, self.decoder = (nn.ModuleList(part) for part in build(self.config, width))
        self.norm_out = _norm(norm, channels[0])
        self.conv_out = _zero(nn.Conv2d(channels[0], 3 * patch_size**2, 3, padding=1))

    learned_variance = False

    def hidden_matrices(self) -> set[str]:
        """Names of the weights between its features: all matrices and kernels but those at its inputs and its output."""
        outer = ("conv_in", "conv_out", "noise_embedding", "class_embedding", "aug_embedding")
        return {name for name, weight in self.named_parameters() if weight.ndim > 1 and name.split(".")[0] not in outer}

    @property
    def detail_std(self) -> float | None:
        return self.config.detail_std

    @property
    def prediction_type(self) -> str:
        return str(self.config.prediction_type)

    @property
    def size_multiple(self) -> int:
        """It runs on images whose side this divides."""
        return int(self.config.patch_size * 2 ** (len(self.config.channels) - 1))

    @property
    def num_classes(self) -> int | None:
        return self.config.num_classes

    @property
    def null_label(self) -> int | None:
        return self.config.num_classes if self.config.null_class else None

    def without_classes(self) -> UNet:
        """A copy that takes no class, and predicts what this one does for images of none; ValueError if it knows no such."""
        if self.class_embedding is None or self.null_label is None:
            raise ValueError("this network was not trained on images of no class, so it can't do without a class")
        weights = {name: value for name, value in self.state_dict().items() if not name.startswith("class_embedding.")}
        of_no_class = self.class_embedding.weight[self.null_label].detach()
        weights["noise_embedding.2.bias"] = weights["noise_embedding.2.bias"] + of_no_class
        copy = type(self).from_config(self.config, num_classes=None).to(self.dtype)
        copy.load_state_dict(weights)
        return copy.eval()

    def forward(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        class_labels: Tensor | None = None,
        low_res: Tensor | None = None,
        aug_level: Tensor | None = None,
    ) -> Tensor:
        """As `Denoiser.__call__`: `x_t` [B, 3, H, W] to a prediction of its shape.

        `low_res` [B, 3, h, w] is upsampled to H x W by bicubic interpolation and concatenated. `aug_level` None means 0.
        """
        inputs = (x_t, log_snr, class_labels, low_res, aug_level)
        coarse = self.coarse(log_snr, x_t.shape[-1])
        if coarse is None or coarse.all() or not coarse.any():
            return self.predict(coarse is not None and bool(coarse.all()), *inputs)
        output = torch.empty_like(x_t)
        for chosen, at_half_size in ((coarse, True), (~coarse, False)):
            others = [None if value is None else value[chosen] for value in (class_labels, low_res, aug_level)]
            output[chosen] = self.predict(at_half_size, x_t[chosen], log_snr[chosen], *others)
        return output

    def coarse(self, log_snr: Tensor, size: int) -> Tensor | None:
        """Which images of this size and log-SNR [B] are denoised at half their size, bool [B]; None = none ever."""
        below = self.config.coarse_below
        return None if below is None or size != self.config.sample_size else log_snr < below

    def at_level(self, log_snr: float) -> Denoiser:
        """As `denoiser.at_level`; on a CUDA device, unless `forward` is hooked, as graphs that are recorded and replayed."""
        if self.device.type != "cuda" or "forward" in vars(self) or torch.is_grad_enabled():
            return self  # type: ignore[return-value]  # its facts are properties, and a protocol's may be set
        return _Recorded(self, log_snr)  # type: ignore[return-value]

    def predict(self, at_half_size: bool, x_t: Tensor, log_snr: Tensor, *others: Tensor | None) -> Tensor:
        """`forward` for images that are all denoised at half their size or all at their own, which nothing is waited for.

        At half the size, x0 comes from the image averaged over 2x2 pixels. That halves the noise's std: the small image has
        2 ln 2 more log-SNR.
        """
        if not at_half_size:
            return self._predict(x_t, log_snr, *others)
        half = x_t.shape[-1] // 2
        shifted = resolution_shift(log_snr, half, x_t.shape[-1])
        scale = (signal_and_noise(shifted)[0] / signal_and_noise(log_snr)[0])[:, None, None, None]
        x0 = self._predict((F.avg_pool2d(x_t, 2) * scale).to(x_t.dtype), shifted, *others)
        return _doubled(x0.float()).to(x_t.dtype)

    def _predict(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        class_labels: Tensor | None = None,
        low_res: Tensor | None = None,
        aug_level: Tensor | None = None,
    ) -> Tensor:
        embedding = self._embedding(log_snr, class_labels, aug_level)
        x, upsampled, precondition = x_t, None, None
        if self.config.low_res_size is not None:
            if low_res is None:
                raise ValueError(f"this network refines {self.config.low_res_size} px images: low_res is missing")
            upsampled = F.interpolate(low_res.float(), size=x_t.shape[-2:], mode="bicubic", align_corners=False).to(x_t.dtype)
            if self.config.detail_std is not None:
                precondition = _Precondition(self.config.detail_std, x_t, upsampled, log_snr)
                x = precondition.details
            x = torch.cat([upsampled, x], dim=1)
        x = F.pixel_unshuffle(x.to(embedding.dtype), self.config.patch_size).contiguous(memory_format=torch.channels_last)
        x = self.conv_in(x)
        skips = [x] if self.config.layout == "sr3" else []
        for block in self.encoder:
            x = self._run(block, x, embedding)
            if block.gives_skip:
                skips.append(x)
        for block in self.middle:
            x = self._run(block, x, embedding)
        for block in self.decoder:
            x = self._run(block, torch.cat([x, skips.pop()], dim=1) if block.takes_skip else x, embedding)
        x = self.conv_out(F.silu(self.norm_out(x)))
        output = F.pixel_shuffle(x, self.config.patch_size).to(x_t.dtype)
        if precondition is not None:
            return precondition.x0(output)
        return output if upsampled is None or not self.config.low_res_skip else output + upsampled

    def _run(self, block: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, x, embedding)
        return block(x, embedding)

    def _embedding(self, log_snr: Tensor, class_labels: Tensor | None, aug_level: Tensor | None) -> Tensor:
        """Sum of the embeddings of noise level, class and augmentation level, activated; [B, width]."""
        width, dtype = self.config.channels[0], self.conv_in.weight.dtype
        embedding = self.noise_embedding(sinusoidal_embedding(LOG_SNR_SCALE * log_snr, width).to(dtype))
        if self.class_embedding is not None:
            if class_labels is None:
                raise ValueError(f"this network knows {self.config.num_classes} classes: class_labels is missing")
            embedding = embedding + self.class_embedding(class_labels)
        if self.aug_embedding is not None:
            aug_level = torch.zeros_like(log_snr) if aug_level is None else aug_level
            embedding = embedding + self.aug_embedding(sinusoidal_embedding(AUG_LEVEL_SCALE * aug_level, width).to(dtype))
        return F.silu(embedding)


class _Recorded(Wrapper):
    """A network whose evaluations of images of one log-SNR are recorded as graphs, see `Graphs`."""

    def __init__(self, network: UNet, log_snr: float) -> None:
        super().__init__(network)  # type: ignore[arg-type]  # its facts are properties, and a protocol's may be set
        self.network, self.level = network, torch.tensor(log_snr)

    def __call__(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        class_labels: Tensor | None = None,
        low_res: Tensor | None = None,
        aug_level: Tensor | None = None,
    ) -> Tensor:
        """As `Denoiser.__call__`."""
        coarse = self.network.coarse(self.level, x_t.shape[-1])
        at_half_size = coarse is not None and bool(coarse)  # of a value on the host
        given = {"class_labels": class_labels, "low_res": low_res, "aug_level": aug_level}
        inputs = {"x_t": x_t, "log_snr": log_snr, **{name: value for name, value in given.items() if value is not None}}
        work = partial(_predict_from, self.network, at_half_size)
        return graphs_of(self.network)(at_half_size, work, inputs)


def _predict_from(network: UNet, at_half_size: bool, inputs: dict[str, Tensor]) -> Tensor:
    names = ("x_t", "log_snr", "class_labels", "low_res", "aug_level")
    return network.predict(at_half_size, *(inputs.get(name) for name in names))  # type: ignore[arg-type]  # the first two are there


def _mlp(in_width: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_width, width), nn.SiLU(), nn.Linear(width, width))


Parts = tuple[list[ResidualBlock], list[ResidualBlock], list[ResidualBlock]]


class _Blocks:
    """Makes the residual blocks of one network: what they share, and which levels attend."""

    def __init__(self, config: Any, embedding_width: int) -> None:
        self.config, self.embedding_width = config, embedding_width

    def __call__(self, level: int, in_channels: int, out_channels: int, attends: bool = True, **options: Any) -> ResidualBlock:
        """A block whose output lies on `level`; it attends if the level does, unless `attends` is False."""
        size = self.config.sample_size // self.config.patch_size // 2**level
        heads = out_channels // self.config.head_channels if attends and size in self.config.attention_sizes else 0
        shared = {"norm": self.config.norm, "dropout": self.config.dropout}
        return ResidualBlock(in_channels, out_channels, self.embedding_width, attention_heads=heads, **shared, **options)

    def middle(self) -> list[ResidualBlock]:
        """Two blocks on the lowest level; the first attends, whatever the level does."""
        channels, level = self.config.channels[-1], len(self.config.channels) - 1
        attending = self(level, channels, channels, attends=False)
        attending.attention = Attention(channels, max(1, channels // self.config.head_channels), self.config.norm)
        return [attending, self(level, channels, channels, attends=False)]


def _build_sr3(config: Any, embedding_width: int) -> Parts:
    """Encoder, middle and decoder with a skip from every feature map; each level of the decoder has one block more."""
    block, channels, last = _Blocks(config, embedding_width), config.channels, len(config.channels) - 1
    encoder, decoder, widths = [], [], [channels[0]]
    for level, (width, count) in enumerate(zip(channels, config.blocks, strict=True)):
        for _ in range(count):
            encoder.append(block(level, widths[-1], width, gives_skip=True))
            widths.append(width)
        if level < last:
            encoder.append(block(level + 1, width, width, attends=False, factor=0.5, gives_skip=True))
            widths.append(width)
    current = channels[-1]
    for level in range(last, -1, -1):
        for _ in range(config.blocks[level] + 1):
            decoder.append(block(level, current + widths.pop(), channels[level], takes_skip=True))
            current = channels[level]
        if level:
            decoder.append(block(level - 1, current, current, attends=False, factor=2))
    return encoder, block.middle(), decoder


def _build_efficient(config: Any, embedding_width: int) -> Parts:
    """Encoder, middle and decoder with one skip a level; the blocks between two levels change both size and width."""
    block, channels, last = _Blocks(config, embedding_width), config.channels, len(config.channels) - 1
    encoder, decoder = [], []
    for level, (width, count) in enumerate(zip(channels, config.blocks, strict=True)):
        for i in range(count):
            first = i == 0 and level > 0
            options: dict[str, Any] = {"factor": 0.5} if first else {}
            encoder.append(block(level, channels[level - 1] if first else width, width, gives_skip=i == count - 1, **options))
    for level in range(last, -1, -1):
        for i in range(config.blocks[level]):
            decoder.append(block(level, channels[level] * (2 if i == 0 else 1), channels[level], takes_skip=i == 0))
        if level:
            wide, narrow = channels[level], channels[level - 1]
            decoder.append(block(level - 1, wide, narrow, attends=False, factor=2, upsample_late=True))
    return encoder, block.middle(), decoder


def _check_config(config: Any) -> None:
    def require(condition: bool, problem: str) -> None:
        if not condition:
            raise ValueError(f"this U-Net can't be built: {problem}")

    counts = {"sample_size": config.sample_size, "head_channels": config.head_channels, "patch_size": config.patch_size}
    counts |= {f"channels.{place}": width for place, width in enumerate(config.channels)}
    counts |= {"low_res_size": config.low_res_size or 1, "num_classes": config.num_classes or 1}
    for name, count in counts.items():
        most = MOST_CLASSES if name == "num_classes" else MOST_WIDTH
        require(type(count) is int and 1 <= count <= most, f"{name} is {count!r}, expected a whole number from 1 to {most:,}")
    require(all(type(n) is int for n in config.blocks) and sum(config.blocks) <= MOST_BLOCKS, f"blocks are {config.blocks}")
    require(type(config.dropout) in (int, float) and 0 <= config.dropout < 1, f"dropout is {config.dropout!r}, expected [0, 1)")
    require(
        config.prediction_type in PREDICTION_TYPES, f"prediction_type {config.prediction_type!r} is none of {PREDICTION_TYPES}"
    )
    require(config.layout in ("sr3", "efficient"), f"layout is {config.layout!r}, expected 'sr3' or 'efficient'")
    require(config.norm in ("group", "pixel"), f"norm is {config.norm!r}, expected 'group' or 'pixel'")
    require(
        len(config.channels) == len(config.blocks) > 0 and min(config.blocks) > 0,
        f"channels {config.channels} and blocks {config.blocks} must name the same levels, with at least one block each",
    )
    require(
        config.coarse_below is None or (config.prediction_type == "sample" and config.low_res_size is None),
        "coarse_below needs prediction_type 'sample' and no low_res_size",
    )
    step = config.patch_size * 2 ** bool(config.coarse_below is not None) * 2 ** (len(config.channels) - 1)
    require(config.sample_size % step == 0, f"sample_size {config.sample_size} is not divisible by {step} (patches and levels)")
    uneven = [c for c in config.channels if c % 2 or (c > config.head_channels and c % config.head_channels)]
    require(not uneven, f"channels {uneven} are not even multiples of head_channels {config.head_channels}")
    require(
        not config.low_res_skip or (config.prediction_type == "sample" and config.low_res_size is not None),
        "low_res_skip needs a low_res_size and prediction_type 'sample'",
    )
    require(
        config.detail_std is None or (config.low_res_skip and config.detail_std > 0),
        f"detail_std needs low_res_skip and a positive number, got {config.detail_std}",
    )
    if config.low_res_size is not None:
        require(config.low_res_size <= config.sample_size, f"low_res_size {config.low_res_size} exceeds {config.sample_size}")
