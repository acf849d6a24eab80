"""What the pixel-space transformers JiT and pMF share: patches, scalars, norms, and positions as rotations.

Written from Li & He 2025 (arXiv:2511.13720), Lu et al. 2026 (arXiv:2601.22158), and the key names of the published files.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascade.stages.noise import MAX_LOG_SNR, like_image, sigma_of
from cascade.stages.published.denoisers import PublishedDenoiser
from cascade.stages.published.family import Config
from cascade.stages.published.openai_unet import timestep_embedding

SCALAR_WIDTH = 256
SMALLEST_TIME = 0.05
"""Networks were trained on velocities `(z - x0) / max(time, this)`, so that they don't grow without bound near the image."""


def checked(config: Config, options: dict[str, Any]) -> dict[str, Any]:
    """The constructor's arguments `options` of a configuration; ValueError if they fit no network, or it has no `noise_scale`."""
    if "noise_scale" not in config:
        raise ValueError("the configuration lacks noise_scale, the noise's std in training: the weights can't tell, so give it")
    if options["hidden_size"] % (4 * options["num_heads"]) or options["input_size"] % options["patch_size"]:
        raise ValueError(
            f"hidden_size {options['hidden_size']} is not 4 * num_heads ({options['num_heads']}) times a whole number, or"
            f" input_size {options['input_size']} not patch_size ({options['patch_size']}) times one"
        )
    return options


def norm(width: int) -> nn.RMSNorm:
    return nn.RMSNorm(width, eps=1e-6)


class ScalarEmbedder(nn.Module):
    """Values [B] as features [B, width]; they go in as they are, not in thousandths."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SCALAR_WIDTH, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, values: Tensor) -> Tensor:
        return self.mlp(timestep_embedding(values, SCALAR_WIDTH).to(next(self.mlp.parameters()).dtype))


class LabelEmbedder(nn.Module):
    """Class indices [B] as features [B, width]; index `num_classes` means "no class"."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class PatchEmbedder(nn.Module):
    """Images [B, C, H, W] as a feature per patch, row by row, [B, N, width], by way of `bottleneck` numbers."""

    def __init__(self, channels: int, patch: int, bottleneck: int, width: int, bias: bool) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(channels, bottleneck, patch, stride=patch, bias=bias)
        self.proj2 = nn.Conv2d(bottleneck, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj2(self.proj1(x.to(self.proj1.weight.dtype))).flatten(2).transpose(1, 2)


def to_image(patches: Tensor, patch: int) -> Tensor:
    """Images [B, C, H, W] of square patches [B, N, patch * patch * C], whose numbers lie in the order row, column, channel."""
    side = round(patches.shape[1] ** 0.5)
    grid = patches.unflatten(1, (side, side)).unflatten(3, (patch, patch, -1))
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, side * patch, side * patch)


@cache
def rotation(side: int, leading: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines float32 [leading + side^2, head_width / 2] of the angles by which pairs of channels turn.

    The first half of the pairs turns with the row of a patch, the second with its column; the `leading` tokens don't turn.
    """
    frequencies = 10000.0 ** (-torch.arange(head_width // 4, dtype=torch.float64) / (head_width // 4))
    along = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    rows, columns = along[:, None].expand(side, side, -1), along[None].expand(side, side, -1)
    angles = F.pad(torch.cat([rows, columns], dim=2).flatten(0, 1), (0, 0, leading, 0))
    return angles.cos().float().to(device), angles.sin().float().to(device)


def attend(q: Tensor, k: Tensor, v: Tensor, side: int) -> Tensor:
    """Softmax attention [B, N, C] of heads [B, N, heads, width], whose last `side`^2 tokens are patches."""
    cos, sin = rotation(side, q.shape[1] - side**2, q.shape[3], q.device)
    q, k, v = _turned(q, cos, sin).transpose(1, 2), _turned(k, cos, sin).transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2).to(x)


class FlowDenoiser(PublishedDenoiser):
    """A denoiser whose network sees `z = (1 - time) x0 + time * noise_scale * eps` and predicts x0; time 1 is pure noise."""

    prediction_type = "sample"
    noise_scale: float

    def flow_time(self, log_snr: Tensor) -> Tensor:
        """Time in [0, 1] at which the network sees images of a log-SNR, float64; exactly 0 and 1 at the ends of all schedules."""
        log_snr = log_snr.double()
        sigma = sigma_of(log_snr)
        time = (sigma / (sigma + self.noise_scale)).masked_fill(log_snr >= MAX_LOG_SNR, 0.0)
        return time.masked_fill(log_snr <= -MAX_LOG_SNR, 1.0)

    def seen(self, x_t: Tensor, time: Tensor) -> Tensor:
        """The image z of a variance preserving one, float32."""
        return x_t.float() * like_image(torch.hypot(1 - time, self.noise_scale * time).float(), x_t.float())

    def along_velocity(self, z: Tensor, x0: Tensor, time: Tensor) -> Tensor:
        """The image towards which the velocity leads, of the network's own estimate: another one below `SMALLEST_TIME` only."""
        return torch.lerp(z, x0.to(z), like_image((time / SMALLEST_TIME).clamp(max=1), z))


def sigma_at(time: float, noise_scale: float) -> float:
    """EDM's sigma at a time of the flow; infinite at 1."""
    return float("inf") if time == 1 else time * noise_scale / (1 - time)
