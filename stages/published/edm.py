"""EDM's ADM-style network with its preconditioning (Karras et al. 2022, arXiv:2206.00364).

Family `edm`; configurations hold the constructor arguments `init_kwargs` that a published pickle records. The published weights
were trained without dropping labels: classifier-free guidance is impossible.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from torch import Tensor, nn

from cascade.stages.noise import like_image
from cascade.stages.published.denoisers import SigmaDenoiser
from cascade.stages.published.family import NON_COMMERCIAL, Checkpoint, Config, Family, section
from cascade.stages.published.heun import EDMHeunScheduler
from cascade.stages.published.openai_unet import attend, resample, timestep_embedding

SIGMA_DATA = 0.5
"""Std of the training images, as all published EDM networks take it."""

_NEEDED = ("img_resolution", "img_channels", "label_dim", "model_type")
_DEFAULTS: dict[str, Any] = {
    "model_channels": 192, "channel_mult": [1, 2, 3, 4], "channel_mult_emb": 4, "num_blocks": 3, "attn_resolutions": [32, 16, 8],
    "augment_dim": 0, "label_dropout": 0, "sigma_data": SIGMA_DATA,
}  # fmt: skip
_WITHOUT_EFFECT = ("use_fp16", "sigma_min", "sigma_max", "dropout")


def preconditioning(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> tuple[Tensor, Tensor, Tensor]:
    """Scalings (c_skip, c_out, c_in) of an EDM network at noise std `sigma` [B] (arXiv:2206.00364, table 1)."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total.sqrt(), 1 / total.sqrt()


def label_vectors(class_labels: Tensor | None, x: Tensor, label_dim: int) -> Tensor:
    """Class vectors float32 [B, label_dim]: as given, one-hot for indices int64 [B] (`label_dim` = no class), zero for None."""
    if label_dim == 0 and class_labels is not None:
        raise ValueError("this network has no classes, leave class_labels out")
    if class_labels is None:
        return torch.zeros(len(x), label_dim, device=x.device)
    if class_labels.ndim == 1:
        return F.one_hot(class_labels, label_dim + 1)[:, :label_dim].float()
    if class_labels.shape != (len(x), label_dim):
        got = tuple(class_labels.shape)
        raise ValueError(f"class_labels have shape {got}, expected {(len(x), label_dim)} one-hot or ({len(x)},) indices")
    return class_labels.float()


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels)


class Block(nn.Module):
    """Residual block with scale and shift by the embedding; attention, where it `attends`, comes after it."""

    def __init__(
        self, channels: int, out_channels: int, options: Config, attends: bool = False, resample: str | None = None, **_: Any
    ) -> None:
        super().__init__()
        self.heads = out_channels // options["channels_per_head"] if attends else 0
        self.resample, self.dropout = resample, options.get("dropout", 0.1)
        self.norm0 = norm(channels)
        self.conv0 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.affine = nn.Linear(options["model_channels"] * options["channel_mult_emb"], 2 * out_channels)
        self.norm1 = norm(out_channels)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        if self.heads:
            self.norm2 = norm(out_channels)
            self.qkv = nn.Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(resample(F.silu(self.norm0(x)), self.resample))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        x = self.skip(resample(x, self.resample)) + self.conv1(F.dropout(h, self.dropout, self.training))
        if not self.heads:
            return x
        h = attend(self.qkv(self.norm2(x)).flatten(2), self.heads, "innermost")
        return x + self.proj(h.view_as(x))


class EncoderDecoder(nn.Module):
    """The layers of EDM's and EDM2's networks under the names of their files, and the way through them.

    `first` is the first convolution; `block(channels, out_channels, attends=, resample=, decodes=)` makes a residual block.
    """

    def __init__(self, options: Config, widths: Sequence[int], first: nn.Module, block: Callable[..., nn.Module]) -> None:
        super().__init__()
        sides = [options["img_resolution"] >> level for level in range(len(widths))]
        attending, blocks = options["attn_resolutions"], options["num_blocks"]
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        current, skips = widths[0], list[int]()
        for side, width in zip(sides, widths, strict=True):
            name, layer = ("down", block(current, current, resample="down")) if skips else ("conv", first)
            self.enc[f"{side}x{side}_{name}"] = layer
            skips.append(current)
            for i in range(blocks):
                self.enc[f"{side}x{side}_block{i}"] = block(current, width, attends=side in attending)
                current = width
                skips.append(current)
        for side, width in reversed(list(zip(sides, widths, strict=True))):
            if side == sides[-1]:
                self.dec[f"{side}x{side}_in0"] = block(current, current, attends=True, decodes=True)
                self.dec[f"{side}x{side}_in1"] = block(current, current, decodes=True)
            else:
                self.dec[f"{side}x{side}_up"] = block(current, current, resample="up", decodes=True)
            for i in range(blocks + 1):
                layer = block(current + skips.pop(), width, attends=side in attending, decodes=True)
                self.dec[f"{side}x{side}_block{i}"] = layer
                current = width

    def through(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Features before the last convolution, of scaled images."""
        skips = []
        for name, layer in self.enc.items():
            h = layer(h) if name.endswith("_conv") else layer(h, embedding)
            skips.append(h)
        for name, layer in self.dec.items():
            h = layer(self.join(h, skips.pop()) if "block" in name else h, embedding)
        return h

    def join(self, h: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([h, skip], dim=1)


class UNet(EncoderDecoder):
    """The raw network F, called with the scaled image and `c_noise`."""

    def __init__(self, options: Config) -> None:
        width = options["model_channels"]
        widths, embedding_width = [width * factor for factor in options["channel_mult"]], width * options["channel_mult_emb"]
        first = nn.Conv2d(options["img_channels"], widths[0], 3, padding=1)
        super().__init__(options, widths, first, partial(Block, options=options))
        self.width = width
        self.map_augment = nn.Linear(options["augment_dim"], width, bias=False) if options["augment_dim"] else None
        self.map_layer0 = nn.Linear(width, embedding_width)
        self.map_layer1 = nn.Linear(embedding_width, embedding_width)
        self.map_label = nn.Linear(options["label_dim"], embedding_width, bias=False) if options["label_dim"] else None
        self.out_norm = norm(widths[0])
        self.out_conv = nn.Conv2d(widths[0], options["img_channels"], 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, label_vectors: Tensor) -> Tensor:
        dtype = self.out_conv.weight.dtype
        embedding = self.map_layer1(F.silu(self.map_layer0(timestep_embedding(c_noise, self.width).to(dtype))))
        if self.map_label is not None:
            embedding = embedding + self.map_label(label_vectors.to(dtype))
        h = self.through(x.to(dtype), F.silu(embedding))
        return self.out_conv(F.silu(self.out_norm(h)))


class Preconditioned(nn.Module):
    """A raw network F, which files call `name`, under EDM's scalings: `network(x, sigma, class_labels)` gives D(x; sigma)."""

    def __init__(self, options: Config, name: str, raw: nn.Module) -> None:
        super().__init__()
        self.sigma_data, self.label_dim, self.name = options["sigma_data"], options["label_dim"], name
        self.add_module(name, raw)

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Denoised images, shape and number type of `x`: noisy images `x0 + sigma eps`, unscaled, [B, C, H, W], with sigma [B].

        `class_labels` are one-hot [B, label_dim], or indices int64 [B], ValueError otherwise; None = a zero vector, which these
        networks were not trained for.
        """
        c_skip, c_out, c_in = preconditioning(sigma, self.sigma_data)
        labels = label_vectors(class_labels, x, self.label_dim)
        output = self.get_submodule(self.name)(like_image(c_in, x) * x, sigma.log() / 4, labels)
        return like_image(c_skip, x) * x + like_image(c_out, x) * output.to(x)


def build(config: Config) -> Preconditioned:
    """The raw network of a configuration. `channels_per_head` beside `init_kwargs` is 64 where it is not given, as in the source.

    Only the network of the published ImageNet-64 file is known.
    """
    given = section(config, "init_kwargs", _NEEDED, (*_DEFAULTS, *_WITHOUT_EFFECT))
    if given["model_type"] != "DhariwalUNet":
        raise ValueError(
            f"model_type is {given['model_type']!r}; of EDM's networks only 'DhariwalUNet' (ImageNet-64) is supported"
        )
    options = {**_DEFAULTS, **given, "channels_per_head": config.get("channels_per_head", 64)}
    return Preconditioned(options, "model", UNet(options))


def drop_constants(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The tensors of a file without its resampling filters. ValueError if one is not the 2x2 mean that the network takes."""
    filters = {key for key in tensors if key.endswith(".resample_filter")}
    if wrong := sorted(key for key in filters if tensors[key].shape != (1, 1, 2, 2) or not (tensors[key] == 0.25).all()):
        raise ValueError(f"{wrong[0]} is not the 2x2 mean of the published network; another resampling filter is not supported")
    return {key: value for key, value in tensors.items() if key not in filters}


class EDMDenoiser(SigmaDenoiser, ModelMixin):
    """EDM's ImageNet-64 network as a denoiser that predicts x0."""

    build = staticmethod(build)

    def setup(self, published: Config) -> tuple[int, int | None]:
        self.network, options = self.build(published), published["init_kwargs"]
        self.num_classes = options["label_dim"] or None
        self.null_label = self.num_classes if options.get("label_dropout") else None
        return options["img_resolution"], None


def sampler(config: Config) -> tuple[EDMHeunScheduler, dict[str, Any]]:
    """The stochastic sampler and the 256 steps with which the project's ImageNet-64 network was published (table 5)."""
    return EDMHeunScheduler(s_churn=40, s_min=0.05, s_max=50, s_noise=1.003), {"num_inference_steps": 256}


def checkpoint(folder: str, file: str, parameters: int, keys: int, options: Config, pattern: str | None = None) -> Checkpoint:
    """A file in a folder of NVIDIA's store."""
    url, config = f"https://nvlabs-fi-cdn.nvidia.com/{folder}/{file}", {"init_kwargs": options}
    return Checkpoint(file=file, config=config, url=url, parameters=parameters, keys=keys, pattern=pattern)


family = partial(Family, licence=NON_COMMERCIAL, config_hint="'init_kwargs', the arguments of the network's constructor")
"""The record of a family of NVIDIA's, from what is its own."""

_IMAGENET_64 = {
    "img_resolution": 64, "img_channels": 3, "label_dim": 1000, "model_type": "DhariwalUNet", "model_channels": 192,
    "channel_mult": [1, 2, 3, 4], "sigma_data": SIGMA_DATA,
}  # fmt: skip
"""EDM's ImageNet-64 network; its other arguments are the defaults of its class."""

FAMILY = family(
    name="edm",
    project="https://github.com/NVlabs/edm",
    config_keys=("init_kwargs", "channels_per_head"),
    build=build,
    denoiser=EDMDenoiser,
    sampler=sampler,
    own_tensors=drop_constants,
    pickled_classes=frozenset(
        {"EDMPrecond", "DhariwalUNet", "UNetBlock", "Conv2d", "Linear", "GroupNorm", "PositionalEmbedding", "ModuleDict"}
    ),
    checkpoints=(checkpoint("edm/pretrained", "edm-imagenet-64x64-cond-adm.pkl", 295_899_267, 541, _IMAGENET_64),),
)
