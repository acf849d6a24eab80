"""The transformer behind DINOv2 features against PyTorch's own encoder layers, on random weights of its layout."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from cascade.eval.dinov2 import DINOv2, VisionTransformer
from cascade.eval.published_weights import file_sha256

WIDTH, DEPTH, PATCH, GRID = 128, 3, 14, 5


@pytest.fixture
def network() -> VisionTransformer:
    generator = torch.Generator().manual_seed(0)
    made = VisionTransformer(WIDTH, DEPTH, PATCH, GRID).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made


def encoder_layer(block: nn.Module) -> nn.Module:
    """PyTorch's pre-norm layer with the same weights, the per-channel scales folded into the output projections."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True).eval()
    scale1, scale2 = block.ls1.gamma, block.ls2.gamma
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": block.attn.qkv.weight,
            "self_attn.in_proj_bias": block.attn.qkv.bias,
            "self_attn.out_proj.weight": block.attn.proj.weight * scale1[:, None],
            "self_attn.out_proj.bias": block.attn.proj.bias * scale1,
            "linear1.weight": block.mlp.fc1.weight,
            "linear1.bias": block.mlp.fc1.bias,
            "linear2.weight": block.mlp.fc2.weight * scale2[:, None],
            "linear2.bias": block.mlp.fc2.bias * scale2,
            **{f"norm1.{name}": value for name, value in block.norm1.state_dict().items()},
            **{f"norm2.{name}": value for name, value in block.norm2.state_dict().items()},
        }
    )
    return layer


@torch.no_grad()
def test_the_transformer_equals_pytorchs_layers(network):
    x = torch.randn(2, 3, GRID * PATCH, GRID * PATCH, generator=torch.Generator().manual_seed(1))
    patches = F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)         # the patch convolution as a matrix product
    tokens = F.linear(patches, network.patch_embed["proj"].weight.flatten(1), network.patch_embed["proj"].bias)
    tokens = torch.cat([network.cls_token.expand(2, -1, -1), tokens], dim=1) + network.pos_embed
    for block in network.blocks:
        tokens = encoder_layer(block)(tokens)
    torch.testing.assert_close(network(x), network.norm(tokens)[:, 0], rtol=1e-4, atol=1e-5)


def cubic_matrix(side: int) -> torch.Tensor:
    """Keys' cubic convolution (a = -0.75, edges repeated), GRID samples to `side`, spaced by GRID / (side + 0.1)."""
    matrix = torch.zeros(side, GRID, dtype=torch.float64)
    for i in range(side):
        place = (i + 0.5) * GRID / (side + 0.1) - 0.5
        for j in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            t = abs(place - j)
            weight = 1.25 * t**3 - 2.25 * t**2 + 1 if t <= 1 else -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            matrix[i, min(max(j, 0), GRID - 1)] += weight
    return matrix


@torch.no_grad()
def test_positions_of_another_grid_are_cubic_with_the_published_offset(network):
    positions = network._positions(8)
    trained = network.pos_embed[0, 1:].double().unflatten(0, (GRID, GRID))
    want = torch.einsum("ia,jb,abw->ijw", cubic_matrix(8), cubic_matrix(8), trained).flatten(0, 1)
    torch.testing.assert_close(positions[0, 1:].double(), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(positions[:, 0], network.pos_embed[:, 0])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_the_published_layout_are_read(network, tmp_path, suffix):
    state = {**network.state_dict(), "mask_token": torch.zeros(1, WIDTH)}
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    extractor = DINOv2(path, sha256=file_sha256(path))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    features = extractor(images)
    assert features.shape == (2, extractor.dimension) == (2, WIDTH)
    np.testing.assert_allclose(extractor(images[1:]), features[1:], rtol=1e-4, atol=1e-5)


def test_other_weights_are_refused(network, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="not the weights of a DINOv2"):
        DINOv2(path, sha256=file_sha256(path))
    with pytest.raises(ValueError, match="expected d5383ea8"):
        DINOv2(path)
