"""ResNet-50 as torchvision publishes it: its own code on pictures prepared by Pillow, on random weights of the real shape."""

import numpy as np
import pytest
import torch
from PIL import Image

from cascade.eval import resnet
from cascade.eval.files import file_sha256
from cascade.eval.resnet import IMAGENET_V1, ResNet50

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def theirs(torchvision):
    """torchvision's network with random weights; statistics of its normalisations are random too, so that each matters."""
    torch.manual_seed(0)
    network = torchvision.models.resnet50(weights=None)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    network.fc.weight.data /= 50  # else one class takes everything
    return network.eval()


@pytest.fixture(scope="module")
def weights(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(theirs.state_dict(), path)
    return path


def test_the_architecture_is_the_published_one(theirs):
    assert sum(value.numel() for value in theirs.parameters()) == 25_557_032, "as torchvision's documentation counts"


@pytest.mark.parametrize(("size", "tolerance"), [(256, 1e-4), (64, 0.02)])
def test_probabilities_are_torchvisions_of_pictures_prepared_by_pillow(theirs, weights, size, tolerance):
    """256 px need no resize; others are rounded after it, so Pillow's filter and torch's may differ by one step in 255."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    images = np.stack([np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in small])
    resized = [np.asarray(Image.fromarray(one).resize((256, 256), Image.Resampling.BILINEAR)) for one in images]
    middle = np.stack(resized)[:, 16:240, 16:240].astype(np.float64) / 255
    with torch.inference_mode():
        logits = theirs(torch.tensor((middle - MEAN) / STD).permute(0, 3, 1, 2).float())
    want = logits.double().softmax(dim=1).numpy()
    network = ResNet50(weights, sha256=file_sha256(weights))
    got = network.probabilities(images)
    assert network.weights_hash == file_sha256(weights) and got.shape == (3, 1000)
    np.testing.assert_allclose(np.log(got), np.log(want), rtol=0, atol=tolerance)
    assert np.abs(np.log(want[0] / want[1])).max() > 10 * tolerance, "the pictures differ by far more than the two ways"


def test_other_files_are_refused(weights, tmp_path):
    with pytest.raises(ValueError, match="expected 0676ba61"):
        ResNet50(weights)
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold the weights of torchvision's ResNet-50"):
        ResNet50(tmp_path / "other.pth", sha256=file_sha256(tmp_path / "other.pth"))
    assert IMAGENET_V1.url.endswith(f"-{IMAGENET_V1.sha256[:8]}.pth")


def test_without_torchvision_it_says_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(name="torchvision")

    monkeypatch.setattr(resnet.importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"torchvision is not installed; run `pip install 'cascade-diffusion\[eval\]'`"):
        ResNet50()
