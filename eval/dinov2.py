"""DINOv2 features, without torch.hub: the vision transformer and the reading of its published weights.

Needs the file dinov2_vitl14_pretrain.pth (1.2 GB, Apache-2.0), given by path or downloaded once into the user's cache.
"""

import math
from pathlib import Path

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
POSITION_OFFSET = 0.1  # added to the grid's side when positions are resized, as in the published network
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_OUR_NAMES = {  # of the published names' parts; torch's layer holds the same numbers in the same order
    "patch_embed.proj.": "patch_embed.",
    ".attn.qkv.": ".self_attn.in_proj_",
    ".attn.proj.": ".self_attn.out_proj.",
    ".mlp.fc1.": ".linear1.",
    ".mlp.fc2.": ".linear2.",
}
_SCALED = {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2"}  # scales per channel, folded into the layer before them


class DINOv2:
    """Class token of DINOv2 ViT-L/14 behind its last normalisation, 1,024 features (Oquab et al. 2023, arXiv:2304.07193).

    For FD-DINOv2 (Stein et al. 2023, arXiv:2306.04675). Images are resized to 224x224 by an antialiased bicubic filter in float
    and normalised by ImageNet's mean and standard deviation.
    """

    name = "dinov2-vitl14"
    resize_mode = "bicubic-antialias-224"

    def __init__(self, weights: Path | None = None, sha256: str | None = None, device: str = "cpu"):
        """The network on `device`, as torch names it; `weights`, `sha256` and errors as of `PublishedWeights.locate`.

        The file is .pth (read weights-only) or .safetensors; ValueError too if it holds no such network.
        """
        file, self.weights_hash = VIT_L14.locate(weights, sha256)
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
        self._network = VisionTransformer.from_state(state).to(device).eval()
        self._device = device

    @torch.inference_mode()
    def __call__(self, images: Images) -> NDArray[np.float32]:
        """uint8 RGB, [N, S, S, 3], to features, [N, 1024]."""
        pixels = torch.tensor(images, device=self._device).permute(0, 3, 1, 2).float()
        pixels = F.interpolate(pixels, size=(INPUT_SIZE, INPUT_SIZE), mode="bicubic", antialias=True) / 255
        mean, std = (torch.tensor(v, device=self._device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return self._network((pixels - mean) / std).cpu().numpy()


class VisionTransformer(nn.Module):
    """Pre-norm transformer over square patches."""

    def __init__(self, width: int, depth: int, patch: int, grid: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        sizes, options = (width, width // HEAD_WIDTH, 4 * width, 0.0), {"batch_first": True, "norm_first": True}
        layers = (nn.TransformerEncoderLayer(*sizes, "gelu", NORM_EPS, **options) for _ in range(depth))
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "VisionTransformer":
        """The network whose sizes published weights imply. Raises ValueError if they are not of such a network."""
        try:
            width, _, patch, _ = state["patch_embed.proj.weight"].shape
            depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
            network = cls(width, depth, patch, math.isqrt(state["pos_embed"].shape[1] - 1))
            network.load_state_dict(_translated(state, depth))
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"these are not the weights of a DINOv2 network without registers: {error}") from error
        return network

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images, [B, 3, S, S], S a multiple of the patch size, to class tokens, [B, width]."""
        patches = self.patch_embed(x)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        return self.norm(self.blocks(tokens + self._positions(patches.shape[-1]))[:, 0])

    def _positions(self, side: int) -> Tensor:
        """Position embeddings of a grid of side x side patches, bicubic from the grid of training."""
        grid = math.isqrt(self.pos_embed.shape[1] - 1)
        if side == grid:
            return self.pos_embed
        of_patches = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
        scale = (side + POSITION_OFFSET) / grid
        resized = F.interpolate(of_patches, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


def _translated(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Published weights by the names of `VisionTransformer`, without what only training needs."""
    state = {name: value for name, value in state.items() if name != "mask_token"}
    for block in range(depth):
        for scale, layer in _SCALED.items():
            gamma = state.pop(f"blocks.{block}.{scale}")
            weight, bias = f"blocks.{block}.{layer}.weight", f"blocks.{block}.{layer}.bias"
            state[weight], state[bias] = state[weight] * gamma[:, None], state[bias] * gamma
    for theirs, ours in _OUR_NAMES.items():
        state = {name.replace(theirs, ours): value for name, value in state.items()}
    return state
