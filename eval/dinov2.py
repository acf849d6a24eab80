"""DINOv2 features, without torch.hub: the vision transformer and the reading of its published weights.

Needs the file dinov2_vitl14_pretrain.pth (1.2 GB, Apache-2.0), given by path or downloaded once into the user's cache.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.eval.images import Images
from cascade.eval.published_weights import PublishedWeights

# SHA-256 as several independent projects state it.
VIT_L14 = PublishedWeights(
    url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
)
INPUT_SIZE = 224
HEAD_WIDTH = 64
NORM_EPS = 1e-6
POSITION_OFFSET = 0.1       # added to the grid's side when positions are resized, as in the published network
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DINOv2:
    """Class token of DINOv2 ViT-L/14 behind its last normalisation, 1,024 features; for FD-DINOv2.

    Images are resized to 224x224 by an antialiased bicubic filter in float and normalised by ImageNet's mean and
    standard deviation.

    Source: Oquab et al. 2023 (arXiv:2304.07193); as a metric, Stein et al. 2023 (arXiv:2306.04675).
    """

    name = "dinov2-vitl14"
    resize_mode = "bicubic-antialias-224"

    def __init__(self, weights: Path | None = None, sha256: str | None = None, device: str = "cpu"):
        """
        Args:
            weights: .pth (read weights-only) or .safetensors; None = from the user's cache, downloaded once.
            sha256: expected hash of `weights` if it is not the published file; None = the published file's.
            device: where to run, as torch names it.

        Raises:
            ValueError: if the file is missing, has another hash, or holds no such network.
            ConnectionError: if the file must be downloaded and cannot be.
        """
        file, self.weights_hash = VIT_L14.locate(weights, sha256)
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
        self._network = VisionTransformer.from_state(state).to(device).eval()
        self._device = device
        self.dimension = self._network.cls_token.shape[-1]

    @torch.inference_mode()
    def __call__(self, images: Images) -> NDArray[np.float32]:
        """uint8 RGB, [N, S, S, 3], to features, [N, dimension]."""
        pixels = torch.tensor(images, device=self._device).permute(0, 3, 1, 2).float()
        pixels = F.interpolate(pixels, size=(INPUT_SIZE, INPUT_SIZE), mode="bicubic", antialias=True) / 255
        mean, std = (torch.tensor(v, device=self._device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return self._network((pixels - mean) / std).cpu().numpy()


class VisionTransformer(nn.Module):
    """Pre-norm transformer over 14x14 patches; parameter names are those of the published files."""

    def __init__(self, width: int, depth: int, patch: int, grid: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "VisionTransformer":
        """The network whose sizes the weights imply. Raises ValueError if they are not of such a network."""
        try:
            width, _, patch, _ = state["patch_embed.proj.weight"].shape
            depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
            grid = math.isqrt(state["pos_embed"].shape[1] - 1)
            network = cls(width, depth, patch, grid)
            network.load_state_dict({name: value for name, value in state.items() if name != "mask_token"})
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"these are not the weights of a DINOv2 network without registers: {error}") from error
        return network

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images, [B, 3, S, S], S a multiple of the patch size, to class tokens, [B, width]."""
        patches = self.patch_embed["proj"](x)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = tokens + self._positions(patches.shape[-1])
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0])

    def _positions(self, side: int) -> Tensor:
        """Position embeddings of a grid of side x side patches, bicubic from the grid of training."""
        grid = math.isqrt(self.pos_embed.shape[1] - 1)
        if side == grid:
            return self.pos_embed
        of_patches = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
        scale = (side + POSITION_OFFSET) / grid
        resized = F.interpolate(of_patches, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


class Block(nn.Module):
    """Self-attention and a two-layer perceptron, each normalised before and scaled per channel after."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Perceptron(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, -1, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma
