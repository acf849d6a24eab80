"""torchvision's ResNet-50: SR3's judge of enlarged pictures, with published weights, and what learns from samples.

Needs torchvision, of the extra `eval`.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cascade.eval.images import BATCH, Images
from cascade.eval.published_weights import PublishedWeights

# SHA-256 as several independent projects state it; its first eight digits are in the file's name.
IMAGENET_V1 = PublishedWeights(
    url="https://download.pytorch.org/models/resnet50-0676ba61.pth",
    sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
)


class ResNet50:
    """ResNet-50 with torchvision's first weights, "IMAGENET1K_V1", which come closest to the paper's recipe.

    Pictures are prepared as torchvision states for these weights: the shorter side to 256 pixels by an antialiased bilinear
    filter, the middle 224x224, ImageNet's mean and standard deviation.
    """

    name = "ResNet-50"

    def __init__(self, weights: Path | None = None, sha256: str | None = None, device: str = "cpu"):
        """The network on `device`, as torch names it; `weights`, `sha256` and errors as of `PublishedWeights.locate`.

        ValueError too if torchvision is not installed, or the file holds no such network.
        """
        models = torchvision_models()  # missing, it is missed before weights are downloaded
        file, self.weights_hash = IMAGENET_V1.locate(weights, sha256)
        self._network = models.resnet50(weights=None)
        try:
            self._network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{file} does not hold the weights of torchvision's ResNet-50: {error}") from error
        self._network.to(device, memory_format=torch.channels_last).eval()
        self._prepare = models.ResNet50_Weights.IMAGENET1K_V1.transforms()
        self._device = device

    @torch.inference_mode()
    def probabilities(self, images: Images) -> NDArray[np.float64]:
        """Probabilities of ImageNet's classes in their usual order, uint8 RGB [N, S, S, 3] to [N, 1000]."""
        found = []
        for start in range(0, len(images), BATCH):
            pixels = torch.tensor(images[start : start + BATCH], device=self._device).permute(0, 3, 1, 2)
            logits = self._network(self._prepare(pixels).contiguous(memory_format=torch.channels_last))
            found.append(logits.double().softmax(dim=1).cpu().numpy())
        return np.concatenate(found)


def torchvision_models() -> Any:
    """The module torchvision.models; ValueError if it is not installed."""
    try:
        return importlib.import_module("torchvision.models")
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed; run `pip install 'cascade-diffusion[eval]'`") from error
