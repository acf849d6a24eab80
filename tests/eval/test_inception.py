"""ADM's layers of Inception on a stand-in with NVIDIA's interface: one pass gives what the whole gives, and sFID's layer."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.eval.features import ADMExtractor
from cascade.eval.files import file_sha256
from cascade.eval.inception import INPUT_SIZE, ADMInception, Inception, tensorflow_resize


class Block(nn.Module):
    """Two branches, of which sFID sees the first; 17x17 places as in the real network."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU())
        self.tower = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x)], dim=1)


class Network(nn.Module):
    """Layers named as in NVIDIA's TorchScript file; resizes as it does, by an affine grid."""

    def __init__(self, layer: str = "mixed_6"):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential()
        self.layers.add_module("conv", nn.Conv2d(3, 8, 27, 17))
        self.layers.add_module(layer, Block())
        self.layers.add_module("conv_1", nn.Conv2d(16, 2048, 17))
        self.output = nn.Linear(2048, 1008)

    def forward(self, x: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        theta = torch.eye(2, 3)
        theta[0, 2] = 1 / x.shape[3] - 1 / 299
        theta[1, 2] = 1 / x.shape[2] - 1 / 299
        grid = F.affine_grid(theta[None].repeat(len(x), 1, 1), [len(x), 3, 299, 299], align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        features = self.layers((x - 128) / 128).reshape(len(x), 2048)
        if return_features:
            return features
        bias = torch.zeros(1008) if no_output_bias else self.output.bias
        return torch.softmax(F.linear(features, self.output.weight, bias), dim=1)


def scripted(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Network(**options).eval()).save(str(path))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return scripted(tmp_path_factory.mktemp("weights") / "inception.pt")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)


def test_one_pass_gives_features_and_probabilities_of_the_whole_network(weights, images):
    extractor = ADMInception(weights, file_sha256(weights))
    assert isinstance(extractor, ADMExtractor)
    found = extractor.all_outputs(images)
    np.testing.assert_allclose(found.pooled, extractor(images), rtol=0, atol=1e-4 * np.abs(found.pooled).max())
    whole = torch.jit.load(str(weights))(torch.tensor(images).permute(0, 3, 1, 2).float(), no_output_bias=True)
    np.testing.assert_allclose(found.probabilities, whole.detach().numpy(), rtol=1e-3, atol=1e-7)


def test_spatial_features_are_the_first_seven_channels_place_by_place_as_adm_orders_them(weights, images):
    found = ADMInception(weights, file_sha256(weights)).all_outputs(images).spatial
    assert found.shape == (3, 2023)
    network = Network()
    with torch.no_grad():
        x = tensorflow_resize(torch.tensor(images).permute(0, 3, 1, 2).float(), INPUT_SIZE)
        places = network.layers.mixed_6.conv(network.layers.conv((x - 128) / 128))
    for row, column, channel in ((0, 0, 0), (0, 1, 0), (3, 5, 6), (16, 16, 6)):
        of_place = found[:, (row * 17 + column) * 7 + channel]
        np.testing.assert_allclose(of_place, places[:, channel, row, column], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("side", [16, 299, 640])
def test_the_resize_takes_place_i_from_i_times_the_ratio(side):
    image = torch.rand(1, 1, side, side, dtype=torch.float64)
    got = tensorflow_resize(image, INPUT_SIZE)[0, 0]
    edged = F.pad(image, (0, 1, 0, 1), mode="replicate")[0, 0]
    for i, j in ((0, 0), (7, 150), (298, 298), (299 // 2, 1)):
        y, x = i * side / INPUT_SIZE, j * side / INPUT_SIZE
        top, left = int(y), int(x)
        a, b = y - top, x - left
        of_rows = [(1 - b) * edged[r, left] + b * edged[r, left + 1] for r in (top, top + 1)]
        assert got[i, j] == pytest.approx(float((1 - a) * of_rows[0] + a * of_rows[1]), abs=1e-12)


def test_other_modes_give_no_spatial_features(weights):
    assert not isinstance(Inception("legacy_tensorflow", weights, file_sha256(weights)), ADMExtractor)


def test_a_network_without_the_layer_is_refused(tmp_path):
    other = scripted(tmp_path / "other.pt", layer="mixed_9")
    with pytest.raises(ValueError, match=r"no mixed_6\.conv"):
        ADMInception(other, file_sha256(other))
