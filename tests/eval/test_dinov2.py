"""The transformer behind DINOv2 features against its definition, on random weights of the published layout."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from cascade.eval.dinov2 import DINOv2, VisionTransformer
from cascade.eval.files import file_sha256

WIDTH, DEPTH, PATCH, GRID = 128, 3, 14, 5


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Random weights by the names and of the layout of the published files."""
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + GRID**2, WIDTH), "mask_token": (1, WIDTH)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,)}
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    linear = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
    linear |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
    for block in (f"blocks.{i}" for i in range(DEPTH)):
        for name, shape in linear.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"{block}.{name}"] = (WIDTH,)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


@pytest.fixture
def network(state) -> VisionTransformer:
    return VisionTransformer.from_state(state).eval()


def block_as_published(x: torch.Tensor, state: dict[str, torch.Tensor], block: str) -> torch.Tensor:
    """Pre-norm self-attention of heads of 64 and a perceptron, each scaled per channel, written out from the weights."""

    def of(name: str) -> torch.Tensor:
        return state[f"{block}.{name}"]

    def linear(name: str, h: torch.Tensor) -> torch.Tensor:
        return h @ of(f"{name}.weight").T + of(f"{name}.bias")

    def normed(name: str, h: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(h, dim=-1, keepdim=True, correction=0)
        return (h - mean) / (variance + 1e-6).sqrt() * of(f"{name}.weight") + of(f"{name}.bias")

    q, k, v = linear("attn.qkv", normed("norm1", x)).unflatten(2, (3, WIDTH // 64, 64)).permute(2, 0, 3, 1, 4)
    heads = (q @ k.transpose(-1, -2) / 8).softmax(dim=-1) @ v
    x = x + of("ls1.gamma") * linear("attn.proj", heads.transpose(1, 2).flatten(2))
    return x + of("ls2.gamma") * linear("mlp.fc2", F.gelu(linear("mlp.fc1", normed("norm2", x))))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])  # torch's layer has a fast path without gradients
def test_the_transformer_equals_its_definition(state, network, mode):
    x = torch.randn(2, 3, GRID * PATCH, GRID * PATCH, generator=torch.Generator().manual_seed(1))
    patches = F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)  # the patch convolution as a matrix product
    tokens = F.linear(patches, state["patch_embed.proj.weight"].flatten(1), state["patch_embed.proj.bias"])
    tokens = torch.cat([state["cls_token"].expand(2, -1, -1), tokens], dim=1) + state["pos_embed"]
    for i in range(DEPTH):
        tokens = block_as_published(tokens, state, f"blocks.{i}")
    with mode():
        got = network(x)
    want = F.layer_norm(tokens[:, 0], (WIDTH,), state["norm.weight"], state["norm.bias"], 1e-6)
    torch.testing.assert_close(got.detach(), want, rtol=1e-4, atol=1e-5)


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
def test_weights_of_the_published_layout_are_read(state, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    extractor = DINOv2(path, sha256=file_sha256(path))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    features = extractor(images)
    assert features.shape == (2, WIDTH)
    np.testing.assert_allclose(extractor(images[1:]), features[1:], rtol=1e-4, atol=1e-5)


def test_other_weights_are_refused(state, tmp_path):
    path = tmp_path / "weights.pth"
    without_scale = {name: value for name, value in state.items() if name != "blocks.1.ls2.gamma"}
    for other in ({"conv.weight": torch.zeros(3)}, {**state, "register_tokens": torch.zeros(1, 4, WIDTH)}, without_scale):
        torch.save(other, path)
        with pytest.raises(ValueError, match="not the weights of a DINOv2"):
            DINOv2(path, sha256=file_sha256(path))
    with pytest.raises(ValueError, match="expected d5383ea8"):
        DINOv2(path)
