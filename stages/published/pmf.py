"""pMF, pixel MeanFlow: a transformer that makes a picture in one evaluation (Lu et al. 2026, arXiv:2601.22158).

Family `pmf`; configurations hold the constructor arguments `init_kwargs`, and what the authors keep beside the file: the
`noise_scale` that the network was trained with, and guidance as they sample with it (`omega`, `interval` in time). Guidance and
the range of noise in which it acts are inputs of the network, and cost no second evaluation; "no class" served training only.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FlowMapEulerDiscreteScheduler, ModelMixin
from torch import Tensor, nn

from cascade.stages.published.family import Checkpoint, Config, Family, section
from cascade.stages.published.pixel_transformer import (
    FlowDenoiser,
    LabelEmbedder,
    PatchEmbedder,
    ScalarEmbedder,
    attend,
    checked,
    norm,
    rotation,
    sigma_at,
    to_image,
)

_NEEDED = ("input_size", "patch_size", "hidden_size", "depth", "num_heads", "aux_head_depth")
_DEFAULTS: dict[str, Any] = {
    "num_class_tokens": 8, "num_time_tokens": 4, "num_cfg_tokens": 4, "num_interval_tokens": 2, "in_channels": 3,
    "num_classes": 1000,
}  # fmt: skip
_WITHOUT_EFFECT = ("eval_mode",)
TRAINING_ONLY = ("v_heads.", "v_final_layer.")
"""Parts of a file that no picture depends on: the second head, of the velocity at one time."""


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.q_norm, self.k_norm = norm(width // heads), norm(width // heads)

    def forward(self, x: Tensor, side: int) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(self.q_norm(q), self.k_norm(k), v, side))


class GatedMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(width * 8 / 3)
        hidden = -(-hidden // 8) * 8 if width > 1024 else hidden
        self.w1, self.w3 = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attn, self.mlp = Attention(width, heads), GatedMLP(width)
        self.attn_scale, self.mlp_scale = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, side: int) -> Tensor:
        x = torch.addcmul(x, self.attn(self.norm1(x), side), self.attn_scale)
        return torch.addcmul(x, self.mlp(self.norm2(x)), self.mlp_scale)


class Final(nn.Module):
    def __init__(self, width: int, numbers: int) -> None:
        super().__init__()
        self.norm, self.linear = norm(width), nn.Linear(width, numbers)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class MeanFlow(nn.Module):
    """The raw network: `network(x, h, w, t_min, t_max, y)` gives the clean image that the average velocity is made of."""

    def __init__(self, options: Config) -> None:
        super().__init__()
        width, heads, patch = options["hidden_size"], options["num_heads"], options["patch_size"]
        self.patch, self.side = patch, options["input_size"] // patch
        counts = [options[f"num_{kind}_tokens"] for kind in ("class", "cfg", "interval", "interval", "time")]
        self.class_tokens, self.omega_tokens, self.t_min_tokens, self.t_max_tokens, self.time_tokens = (
            nn.Parameter(torch.zeros(1, count, width)) for count in counts
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, sum(counts) + self.side**2, width))
        self.x_embedder = PatchEmbedder(options["in_channels"], patch, 128 if width <= 1024 else 256, width, bias=True)
        self.h_embedder, self.omega_embedder = ScalarEmbedder(width), ScalarEmbedder(width)
        self.cfg_t_start_embedder, self.cfg_t_end_embedder = ScalarEmbedder(width), ScalarEmbedder(width)
        self.y_embedder = LabelEmbedder(options["num_classes"], width)
        depth, own = options["depth"], options["aux_head_depth"]
        self.shared_blocks = nn.ModuleList([Block(width, heads) for _ in range(depth - own)])
        self.u_heads = nn.ModuleList([Block(width, heads) for _ in range(own)])
        self.u_final_layer = Final(width, patch**2 * options["in_channels"])

    def forward(self, x: Tensor, h: Tensor, w: Tensor, t_min: Tensor, t_max: Tensor, y: Tensor) -> Tensor:
        """Clean images, shape and number type of `x`.

        Args:
            x: Noisy images `(1 - t) x0 + t * noise_scale * eps`, [B, C, H, W]. The network does not see t.
            h: Width of the step, t minus the time at which it ends, [B].
            w: Strength of guidance, above 0, [B]; 1 = none.
            t_min, t_max: Times between which guidance acts, [B].
            y: Class indices, int64 [B]; `num_classes` means no class.
        """
        conditions = (
            (self.class_tokens, self.y_embedder(y)),
            (self.omega_tokens, self.omega_embedder(1 - 1 / w)),
            (self.t_min_tokens, self.cfg_t_start_embedder(t_min)),
            (self.t_max_tokens, self.cfg_t_end_embedder(t_max)),
            (self.time_tokens, self.h_embedder(h)),
        )
        tokens = [own + embedding[:, None] for own, embedding in conditions]
        sequence = torch.cat([*tokens, self.x_embedder(x)], dim=1) + self.pos_embed
        for block in (*self.shared_blocks, *self.u_heads):
            sequence = block(sequence, self.side)
        return to_image(self.u_final_layer(sequence[:, -(self.side**2) :]), self.patch).to(x)


def options_of(config: Config) -> dict[str, Any]:
    """The constructor's arguments of a configuration, with the authors' defaults."""
    return {**_DEFAULTS, **section(config, "init_kwargs", _NEEDED, (*_DEFAULTS, *_WITHOUT_EFFECT))}


def build(config: Config) -> MeanFlow:
    """The raw network of a configuration; ValueError if its parts don't fit together."""
    return MeanFlow(checked(config, options_of(config)))


def own_tensors(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The tensors of a file by the network's own names, without what only training has, and without its table of rotations.

    ValueError if that table is not the one that the network turns by.
    """
    named = ((re.sub(r"\._flax_(linear|embedding)\.", ".", key.removeprefix("net.")), value) for key, value in tensors.items())
    own = dict(named)
    table, options = own.pop("rope_freqs", None), options_of(config)
    if table is not None:
        side, head_width = options["input_size"] // options["patch_size"], options["hidden_size"] // options["num_heads"]
        expected = torch.complex(*rotation(side, 0, head_width, torch.device("cpu")))
        if table.shape != expected.shape or not torch.allclose(table.to(expected), expected, atol=1e-4):
            raise ValueError(f"rope_freqs is not the table of rotations of {side} x {side} patches in heads of {head_width}")
    return {key: value for key, value in own.items() if not key.startswith(TRAINING_ONLY)}


class MeanFlowDenoiser(FlowDenoiser, ModelMixin):
    """A pMF network as a denoiser, and as a flow map: `FlowMapGuidance` tells it where a step ends, and how it is guided."""

    flow_map = True

    def setup(self, published: Config) -> tuple[int, int | None]:
        self.network, options = build(published), options_of(published)
        self.num_classes, self.noise_scale = options["num_classes"], float(published["noise_scale"])
        return options["input_size"], None

    def forward(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        class_labels: Tensor | None = None,
        low_res: Tensor | None = None,
        aug_level: Tensor | None = None,
        end: Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
    ) -> Tensor:
        """As `Denoiser.__call__`, for a step that ends at log-SNR `end` [B]; None = an infinitely small step.

        `guidance_interval` are the lowest and highest EDM sigma at which guidance acts; None = all. ValueError without
        `class_labels`.
        """
        if class_labels is None:
            raise ValueError(f"this network knows {self.num_classes} classes: class_labels are missing")
        time = self.flow_time(log_snr)
        width = torch.zeros_like(time) if end is None else time - self.flow_time(end)
        low, high = guidance_interval or (0.0, float("inf"))
        bounds = [self.flow_time(-2 * torch.full_like(time, sigma).log()) for sigma in (low, high)]
        z, scale = self.seen(x_t, time), torch.full_like(time, guidance_scale)
        x0 = self.network(z, *(value.float() for value in (width, scale, *bounds)), class_labels)
        return self.along_velocity(z, x0, time).to(x_t)


def sampler(config: Config) -> tuple[FlowMapEulerDiscreteScheduler, dict[str, Any]]:
    """One step, guided as the authors state for the checkpoint; a configuration that doesn't say how is not guided.

    The scheduler's shift is the noise scale: of `(1 - t) x0 + t s eps`, the noise's share is `s t / (1 + (s - 1) t)`.
    """
    scale = float(config["noise_scale"])
    settings: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": float(config.get("omega", 1.0))}
    if "interval" in config:
        settings["guidance_interval"] = [sigma_at(time, scale) for time in config["interval"]]
    return FlowMapEulerDiscreteScheduler(shift=scale), settings


def _checkpoint(
    name: str, size: int, shape: tuple[int, int, int], parameters: int, noise_scale: float, omega: float, interval: list[float]
) -> Checkpoint:
    width, depth, heads = shape
    options = {"input_size": size, "patch_size": size // 16, "hidden_size": width, "depth": depth, "num_heads": heads}
    config = {"init_kwargs": {**options, "aux_head_depth": 8}, "noise_scale": noise_scale, "omega": omega, "interval": interval}
    url = f"https://huggingface.co/Lyy0725/pMF/resolve/main/{name}.pt"
    return Checkpoint(file=f"{name}.pt", config=config, url=url, parameters=parameters, keys=30 + 13 * depth)


FAMILY = Family(
    name="pmf",
    project="https://github.com/Lyy-iiis/pMF",
    licence="MIT",
    config_keys=("init_kwargs", "noise_scale", "omega", "interval"),
    config_hint="'init_kwargs', the arguments of the network's constructor, and its 'noise_scale'",
    build=build,
    denoiser=MeanFlowDenoiser,
    sampler=sampler,
    own_tensors=own_tensors,
    checkpoints=(
        _checkpoint("pMF-B-16", 256, (768, 16, 12), 118_234_240, 1.0, 8.5, [0.1, 0.7]),
        _checkpoint("pMF-L-16", 256, (1024, 32, 16), 410_320_768, 1.0, 7.0, [0.2, 0.7]),
        _checkpoint("pMF-H-16", 256, (1280, 48, 16), 955_508_992, 2.0, 7.0, [0.2, 0.6]),
        _checkpoint("pMF-B-32", 512, (768, 16, 12), 120_300_928, 2.0, 6.5, [0.1, 0.7]),
        _checkpoint("pMF-L-32", 512, (1024, 32, 16), 412_977_280, 4.0, 7.5, [0.2, 0.6]),
        _checkpoint("pMF-H-32", 512, (1280, 48, 16), 959_050_240, 4.0, 5.5, [0.1, 0.6]),
    ),
)
