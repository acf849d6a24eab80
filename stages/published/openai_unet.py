"""The U-Net of OpenAI's diffusion projects: improved-diffusion, guided-diffusion (ADM) and consistency_models share it.

Written from Nichol & Dhariwal 2021 (arXiv:2102.09672), Dhariwal & Nichol 2021 (arXiv:2105.05233, appendix) and the key names of
the published files. The projects differ in `Architecture` only.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascade.stages.cpu_convolutions import Pointwise, added_to

Order = Literal["legacy", "new", "innermost"]
"""Row order of a joint qkv projection: (head, qkv, channel), (qkv, head, channel), or, in EDM's files, (head, channel, qkv)."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a published file can't tell by itself.

    in_channels, out_channels: 6 inputs for a super-resolution network, 6 outputs with a learned variance.
    width, first_width, widths: Of the features of time (of their embedding: a fourth), the first convolution, the levels.
    blocks: Residual blocks of a level.
    attention_factors: Downsampling factors at which blocks attend.
    heads, decoder_heads: Number of heads in encoder and middle, and in the decoder, unless `head_channels` fixes their width.
    attention_dims: Dimensions of the attention's 1x1 convolutions, 1 or 2; their weights are stored as 3-D or 4-D.
    scale_shift: Whether the embedding scales and shifts the second norm; otherwise it is added before it.
    resblock_updown: Resample inside residual blocks; otherwise by convolutions of their own.
    """

    in_channels: int
    out_channels: int
    width: int
    first_width: int
    widths: Sequence[int]
    blocks: int
    attention_factors: frozenset[int]
    heads: int
    decoder_heads: int
    head_channels: int | None
    attention_order: Order = "legacy"
    attention_dims: Literal[1, 2] = 1
    num_classes: int | None
    scale_shift: bool
    resblock_updown: bool


def frequencies(width: int, device: torch.device | None = None) -> Tensor:
    """`width / 2` frequencies from 1 down to nearly 1 / 10000; float32."""
    half = width // 2
    return torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=device) / half)


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of real `timesteps` [B] at `width / 2` periods from 2 pi to 2 pi * 10000; float32 [B, width]."""
    angles = timesteps.float()[:, None] * frequencies(width, timesteps.device)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def resample(x: Tensor, way: str | None) -> Tensor:
    """Twice the size by nearest neighbours ("up"), half by means ("down"), or `x` itself (None)."""
    return x if way is None else F.interpolate(x, scale_factor=2.0, mode="nearest") if way == "up" else F.avg_pool2d(x, 2)


def resampling(channels: int, up: bool, name: str = "conv") -> nn.Sequential:
    """Twice the size by nearest neighbours and a convolution, or half by a strided one; `name` is that of the convolution."""
    convolution = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1)
    first: dict[str, nn.Module] = {"up": nn.Upsample(scale_factor=2.0, mode="nearest")} if up else {}
    return nn.Sequential(OrderedDict({**first, name: convolution}))


def _silu() -> nn.SiLU:
    """In the place of what a norm has made: a new large map costs a CPU more than the activation itself."""
    return nn.SiLU(inplace=True)


class ResBlock(nn.Module):
    """Residual block with an embedding; `resample` comes before the first convolution, and on the skip."""

    def __init__(self, arch: Architecture, channels: int, out_channels: int, resample: str | None = None) -> None:
        super().__init__()
        self.scale_shift, self.resample = arch.scale_shift, resample
        self.in_layers = nn.Sequential(nn.GroupNorm(32, channels), _silu(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * arch.width, out_channels * (2 if arch.scale_shift else 1)))
        convolution = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, out_channels), _silu(), nn.Identity(), convolution)
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, activation, convolution = self.in_layers
        h = convolution(resample(activation(norm(x)), self.resample))
        norm, activation, _, convolution = self.out_layers  # the files count dropout as a layer
        shift = self.emb_layers(embedding)
        h = _modulated(norm, h, *shift.chunk(2, dim=1)) if self.scale_shift else norm(h + shift[:, :, None, None])
        return added_to(self.skip_connection(resample(x, self.resample)), convolution, activation(h))


def _modulated(norm: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`norm(x) * (1 + scale) + shift` of maps [B, C, H, W] by [B, C], `norm` by groups.

    On a CPU one map is passed over once, with scale and shift in the norm's own affine, in float32 at least.
    """
    if len(x) > 1 or x.device.type != "cpu":
        return torch.addcmul(shift[:, :, None, None], norm(x), 1 + scale[:, :, None, None])
    wide = torch.promote_types(x.dtype, torch.float32)
    factor = 1 + scale[0].to(wide)
    weight, bias = norm.weight.to(wide) * factor, torch.addcmul(shift[0].to(wide), norm.bias.to(wide), factor)
    return F.group_norm(x, norm.num_groups, weight, bias, norm.eps)


def resampled(arch: Architecture, channels: int, way: Literal["up", "down"]) -> nn.Module:
    if arch.resblock_updown:
        return ResBlock(arch, channels, channels, way)
    return resampling(channels, up=way == "up", name="conv" if way == "up" else "op")


class AttentionBlock(nn.Module):
    """Self-attention over all positions, added to its input."""

    def __init__(self, arch: Architecture, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads if arch.head_channels is None else channels // arch.head_channels
        if self.heads < 1 or channels % self.heads or (arch.head_channels and channels % arch.head_channels):
            raise ValueError(
                f"an attention block of {channels} channels can't be split into heads of equal width;"
                " num_heads or num_head_channels does not fit num_channels and channel_mult"
            )
        self.order = arch.attention_order
        convolution = Pointwise if arch.attention_dims == 1 else nn.Conv2d
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = convolution(channels, 3 * channels, 1)
        self.proj_out = convolution(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        h = attend(self.qkv(h).flatten(2), self.heads, self.order)
        return added_to(x, self.proj_out, h.view_as(x))


def attend(qkv: Tensor, heads: int, order: Order) -> Tensor:
    """Softmax attention of joint queries, keys and values [B, 3C, N] to [B, C, N]."""
    b, channels, n = qkv.shape
    axis = {"new": 1, "legacy": 2, "innermost": 3}[order]
    shape = [b, heads, channels // 3 // heads, n]
    shape.insert(axis, 3)
    q, k, v = (a.transpose(-1, -2) for a in qkv.reshape(shape).unbind(axis))
    return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, channels // 3, n)


class Stack(nn.ModuleList):
    """Layers in a row, of which the residual blocks take the embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class ContractingHalf(nn.Module):
    """The half of the U-Net that a classifier has too: time, encoder and middle."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch, time, current = arch, 4 * arch.width, arch.first_width
        self.time_embed = nn.Sequential(nn.Linear(arch.width, time), nn.SiLU(), nn.Linear(time, time))
        self.input_blocks = nn.ModuleList([Stack([nn.Conv2d(arch.in_channels, current, 3, padding=1)])])
        self.widths = [current]  # of the outputs of `input_blocks`
        for level, width in enumerate(arch.widths):
            for _ in range(arch.blocks):
                layers: list[nn.Module] = [ResBlock(arch, current, width)]
                current = width
                if 2**level in arch.attention_factors:
                    layers.append(AttentionBlock(arch, current, arch.heads))
                self.input_blocks.append(Stack(layers))
                self.widths.append(current)
            if level < len(arch.widths) - 1:
                self.input_blocks.append(Stack([resampled(arch, current, "down")]))
                self.widths.append(current)
        attention = AttentionBlock(arch, current, arch.heads)
        self.middle_block = Stack([ResBlock(arch, current, current), attention, ResBlock(arch, current, current)])

    def embed(self, timesteps: Tensor) -> Tensor:
        return self.time_embed(timestep_embedding(timesteps, self.arch.width).to(next(self.parameters()).dtype))

    def contract(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Output of the middle, and those of the encoder."""
        h, skips = x.to(embedding.dtype), []
        for stack in self.input_blocks:
            h = stack(h, embedding)
            skips.append(h)
        return self.middle_block(h, embedding), skips


class UNet(ContractingHalf):
    """OpenAI's U-Net as published: `network(x, timesteps, y)`. ValueError if the heads don't divide a width."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self.label_emb = nn.Embedding(arch.num_classes, 4 * arch.width) if arch.num_classes is not None else None
        self.output_blocks = nn.ModuleList()
        current, skips = self.widths[-1], list(self.widths)
        for level, width in reversed(list(enumerate(arch.widths))):
            for i in range(arch.blocks + 1):
                layers: list[nn.Module] = [ResBlock(arch, current + skips.pop(), width)]
                current = width
                if 2**level in arch.attention_factors:
                    layers.append(AttentionBlock(arch, current, arch.decoder_heads))
                if level and i == arch.blocks:
                    layers.append(resampled(arch, current, "up"))
                self.output_blocks.append(Stack(layers))
        self.out = nn.Sequential(nn.GroupNorm(32, current), _silu(), nn.Conv2d(current, arch.out_channels, 3, padding=1))

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """Output for noisy images `x` [B, in_channels, H, W]: [B, out_channels, H, W] in the number type of the weights.

        A learned variance comes after the prediction. `timesteps` [B] are what the network was trained to see as time, and may be
        fractional; `y` are class indices, int64 [B], None exactly for an unconditional network, ValueError otherwise.
        """
        embedding = self.embed(timesteps)
        if self.label_emb is None and y is not None:
            raise ValueError("this network has no classes, leave y out")
        if self.label_emb is not None:
            if y is None:
                raise ValueError(f"this network knows {self.arch.num_classes} classes: y is missing")
            embedding = embedding + self.label_emb(y)
        h, skips = self.contract(x, embedding)
        for stack in self.output_blocks:
            h = stack(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.out(h)


class SuperResUNet(UNet):
    """The same with a low-resolution image, upsampled bilinearly and concatenated after the noisy one."""

    def forward(  # type: ignore[override]  # takes low_res before y, as published
        self, x: Tensor, timesteps: Tensor, low_res: Tensor, y: Tensor | None = None
    ) -> Tensor:
        """As `UNet.forward`; `low_res` are images in [-1, 1], [B, 3, h, w]."""
        upsampled = F.interpolate(low_res.float(), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return super().forward(torch.cat([x, upsampled.to(x)], dim=1), timesteps, y)
