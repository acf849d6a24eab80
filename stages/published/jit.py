"""JiT, "just image transformers": a plain transformer on patches that predicts the clean image (Li & He 2025, arXiv:2511.13720).

Family `jit`; configurations hold the constructor arguments `init_kwargs`, and what the authors keep beside the file: the
`noise_scale`, and guidance as they sample with it (`cfg`, `interval` in their time, where 0 is noise and 1 is the image). A file
is a training checkpoint with several averages of the weights; `average` names another one than `model_ema1`, the authors' own.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from torch import Tensor, nn

from cascade.stages.published.family import Checkpoint, Config, Family, section
from cascade.stages.published.heun import FlowHeunScheduler
from cascade.stages.published.pixel_transformer import (
    FlowDenoiser,
    LabelEmbedder,
    PatchEmbedder,
    ScalarEmbedder,
    attend,
    checked,
    norm,
    sigma_at,
    to_image,
)

_NEEDED = (
    "input_size", "patch_size", "hidden_size", "depth", "num_heads", "bottleneck_dim", "in_context_len", "in_context_start",
)  # fmt: skip
_DEFAULTS: dict[str, Any] = {"in_channels": 3, "num_classes": 1000}
_WITHOUT_EFFECT = ("attn_drop", "proj_drop")
OPEN_END = 1 - 1e-4
"""Theirs acts above a time, ours up to a sigma: the bound itself is not guided, however it is rounded."""


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = norm(width // heads), norm(width // heads)

    def forward(self, x: Tensor, side: int) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.proj(attend(self.q_norm(q), self.k_norm(k), v, side))


class GatedMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(4 * width * 2 / 3)
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)


class Block(nn.Module):
    """Attention and MLP, each scaled and shifted before, and weighted after, by the embedding of time and class."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attn, self.mlp = Attention(width, heads), GatedMLP(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, embedding: Tensor, side: int) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(embedding)[:, None].chunk(6, dim=2)
        x = torch.addcmul(x, gate, self.attn(modulated(self.norm1(x), shift, scale), side))
        return torch.addcmul(x, mlp_gate, self.mlp(modulated(self.norm2(x), mlp_shift, mlp_scale)))


class Final(nn.Module):
    def __init__(self, width: int, numbers: int) -> None:
        super().__init__()
        self.norm_final, self.linear = norm(width), nn.Linear(width, numbers)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(embedding)[:, None].chunk(2, dim=2)
        return self.linear(modulated(self.norm_final(x), shift, scale))


class JiT(nn.Module):
    """The raw network: `network(x, t, y)` gives the clean image; t is 0 for noise and 1 for the image."""

    def __init__(self, options: Config) -> None:
        super().__init__()
        width, patch, in_context = options["hidden_size"], options["patch_size"], options["in_context_len"]
        self.patch, self.side, self.start = patch, options["input_size"] // patch, options["in_context_start"]
        self.pos_embed = nn.Parameter(torch.zeros(1, self.side**2, width), requires_grad=False)  # fixed, and stored
        self.in_context_posemb = nn.Parameter(torch.zeros(1, in_context, width))
        self.t_embedder, self.y_embedder = ScalarEmbedder(width), LabelEmbedder(options["num_classes"], width)
        self.x_embedder = PatchEmbedder(options["in_channels"], patch, options["bottleneck_dim"], width, bias=False)
        self.blocks = nn.ModuleList([Block(width, options["num_heads"]) for _ in range(options["depth"])])
        self.final_layer = Final(width, patch**2 * options["in_channels"])

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Clean images, shape and number type of `x`.

        Args:
            x: Noisy images `t x0 + (1 - t) * noise_scale * eps`, [B, C, H, W].
            t: Their time in [0, 1], [B].
            y: Class indices, int64 [B]; `num_classes` means no class.
        """
        of_class = self.y_embedder(y)
        embedding = self.t_embedder(t) + of_class
        sequence = self.x_embedder(x) + self.pos_embed
        for number, block in enumerate(self.blocks):
            if number == self.start:
                sequence = torch.cat([of_class[:, None] + self.in_context_posemb, sequence], dim=1)
            sequence = block(sequence, embedding, self.side)
        return to_image(self.final_layer(sequence[:, -(self.side**2) :], embedding), self.patch).to(x)


def options_of(config: Config) -> dict[str, Any]:
    """The constructor's arguments of a configuration, with the authors' defaults."""
    return {**_DEFAULTS, **section(config, "init_kwargs", _NEEDED, (*_DEFAULTS, *_WITHOUT_EFFECT))}


def build(config: Config) -> JiT:
    """The raw network of a configuration; ValueError if its parts don't fit together."""
    return JiT(checked(config, options_of(config)))


class JiTDenoiser(FlowDenoiser, ModelMixin):
    """A JiT network as a denoiser."""

    def setup(self, published: Config) -> tuple[int, int | None]:
        self.network, options = build(published), options_of(published)
        self.num_classes = self.null_label = options["num_classes"]
        self.noise_scale = float(published["noise_scale"])
        return options["input_size"], None

    def predict(self, x_t: Tensor, log_snr: Tensor, class_labels: Tensor | None, low_res: Tensor | None) -> Tensor:
        if class_labels is None:
            raise ValueError(f"this network knows {self.num_classes} classes: class_labels are missing")
        time = self.flow_time(log_snr)
        z = self.seen(x_t, time)
        return self.along_velocity(z, self.network(z, (1 - time).float(), class_labels), time).to(x_t)


def sampler(config: Config) -> tuple[FlowHeunScheduler, dict[str, Any]]:
    """Heun's method in 50 steps, guided as the authors state for the checkpoint; a configuration without `cfg` is not guided."""
    scale = float(config["noise_scale"])
    settings: dict[str, Any] = {"num_inference_steps": 50, "guidance_scale": float(config.get("cfg", 1.0))}
    if "interval" in config:
        low, high = config["interval"]
        settings["guidance_interval"] = [sigma_at(1 - high, scale), sigma_at(1 - low, scale) * OPEN_END]
    return FlowHeunScheduler(noise_scale=scale), settings


def _checkpoint(
    size: str, side: int, shape: tuple[int, int, int, int], start: int, parameters: int, noise_scale: float, cfg: float
) -> Checkpoint:
    """A model by its name's letter; its file is published as checkpoint-last.pth in a folder of its own."""
    width, depth, heads, bottleneck = shape
    options = {
        "input_size": side, "patch_size": side // 16, "hidden_size": width, "depth": depth, "num_heads": heads,
        "bottleneck_dim": bottleneck, "in_context_len": 32, "in_context_start": start,
    }  # fmt: skip
    config = {"init_kwargs": options, "noise_scale": noise_scale, "cfg": cfg, "interval": [0.1, 1.0]}
    url = "https://github.com/LTH14/JiT"
    return Checkpoint(file=f"JiT-{size}-{side // 16}.pth", config=config, url=url, parameters=parameters, keys=15 + 14 * depth)


FAMILY = Family(
    name="jit",
    project="https://github.com/LTH14/JiT",
    licence="MIT",
    config_keys=("init_kwargs", "noise_scale", "cfg", "interval", "average"),
    config_hint="'init_kwargs', the arguments of the network's constructor, and its 'noise_scale'",
    build=build,
    denoiser=JiTDenoiser,
    sampler=sampler,
    own_tensors=lambda tensors, config: {key.removeprefix("net."): value for key, value in tensors.items()},
    average="model_ema1",
    told_by_shapes=True,
    checkpoints=(
        _checkpoint("B", 256, (768, 12, 12, 128), 4, 131_320_320, 1.0, 3.0),
        _checkpoint("L", 256, (1024, 24, 16, 128), 8, 459_139_808, 1.0, 2.4),
        _checkpoint("H", 256, (1280, 32, 16, 256), 10, 952_842_048, 1.0, 2.2),
        _checkpoint("B", 512, (768, 12, 12, 128), 4, 133_387_008, 2.0, 3.0),
        _checkpoint("L", 512, (1024, 24, 16, 128), 8, 461_796_320, 2.0, 2.5),
        _checkpoint("H", 512, (1280, 32, 16, 256), 10, 956_383_296, 2.0, 2.3),
    ),
)
