"""Inception features as FID papers use them, in the three modes that clean-fid distinguishes."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cascade.eval.features import ADMFeatures
from cascade.eval.images import Images
from cascade.eval.published_weights import PublishedWeights

INPUT_SIZE = 299
SPATIAL_LAYER, SPATIAL_CHANNELS = "mixed_6", 7  # ADM's evaluator: the first 7 channels of its 1x1 branch, 17x17 places

Mode = Literal["clean", "legacy_tensorflow", "legacy_pytorch"]

# SHA-256 of both files as several independent projects state them (k-diffusion among them for the first).
TORCHSCRIPT = PublishedWeights(
    url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
)
PYTORCH_FID = PublishedWeights(
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)


class Inception:
    """Last pooling layer of the Inception network of 2015-12-05, 2,048 features.

    Mode "clean": images resized to 299 by Pillow's antialiased bicubic filter, unrounded (clean-fid, arXiv:2104.11222).
    Mode "legacy_tensorflow": resized inside the network as the original TensorFlow graph does; what ADM's evaluator measures.
    Mode "legacy_pytorch": resized to 299 by PyTorch's bilinear filter without antialiasing; what pytorch-fid measures.

    The first two run NVIDIA's TorchScript file. TorchScript is a program, so it is run only when its hash is the expected one.
    The third needs clean-fid and torchvision. Figures of different modes are not comparable.
    """

    name = "inception-v3"

    def __init__(self, mode: Mode, weights: Path | None = None, sha256: str | None = None, device: str = "cpu"):
        """The network on `device`, as torch names it; `weights`, `sha256` and errors as of `PublishedWeights.locate`.

        ValueError too if the mode is unknown or a package is missing.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"mode is {mode!r}, expected one of {', '.join(get_args(Mode))}")
        self.resize_mode: str = mode
        self._device = device
        if mode == "clean":
            self._resize_cleanly = _clean_fid("resize").build_resizer("clean")
        elif mode == "legacy_pytorch":
            _clean_fid("inception_pytorch")  # missing, it is missed before weights are downloaded
        file, self.weights_hash = (PYTORCH_FID if mode == "legacy_pytorch" else TORCHSCRIPT).locate(weights, sha256)
        self._network: Any = _pytorch_fid_network(file) if mode == "legacy_pytorch" else torch.jit.load(file, map_location="cpu")
        self._network.to(device).eval()
        if torch.device(device).type == "cpu":  # whose convolutions are faster so
            self._network.to(device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: Images) -> NDArray[np.float32]:
        """uint8 RGB, [N, S, S, 3], to features, [N, 2048]."""
        if self.resize_mode == "clean":
            pixels = self._to_device(np.stack([self._resize_cleanly(image) for image in images]))
            features = self._network.layers((pixels - 128) / 128)
        elif self.resize_mode == "legacy_tensorflow":
            features = self._network(self._to_device(images), return_features=True)
        else:
            pixels = F.interpolate(self._to_device(images), size=(INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False)
            features = self._network(pixels.clamp(0, 255) / 255)[0]
        return features.flatten(1).float().cpu().numpy()

    def _to_device(self, images: NDArray) -> Tensor:
        return torch.tensor(images, device=self._device).permute(0, 3, 1, 2).float().contiguous()


class ADMInception(Inception):
    """The network in mode "legacy_tensorflow" with all that ADM's evaluator takes from it in one pass.

    Runs the layers of NVIDIA's TorchScript file one by one, so that the one in the middle can be seen (Dhariwal & Nichol 2021,
    arXiv:2105.05233, section 2.3; sFID: Nash et al. 2021, arXiv:2103.03841, section 5).
    """

    def __init__(self, weights: Path | None = None, sha256: str | None = None, device: str = "cpu"):
        """Arguments and errors as of `Inception`; ValueError too if the file lacks the layer of spatial features."""
        super().__init__("legacy_tensorflow", weights, sha256, device)
        layers = dict(self._network.layers.named_children())
        if not hasattr(layers.get(SPATIAL_LAYER), "conv"):
            raise ValueError(f"this Inception network has no {SPATIAL_LAYER}.conv, which sFID needs; is it another file?")
        self._layers = layers

    @torch.inference_mode()
    def all_outputs(self, images: Images) -> ADMFeatures:
        """uint8 RGB, [N, S, S, 3], to pooled features, spatial features (row, column, channel) and class probabilities."""
        x = (tensorflow_resize(self._to_device(images), INPUT_SIZE) - 128) / 128
        for name, layer in self._layers.items():
            if name == SPATIAL_LAYER:
                spatial = layer.conv(x)[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
            x = layer(x)
        pooled = x.flatten(1).float()
        probabilities = (pooled @ self._network.output.weight.T).softmax(dim=1)  # IS is defined without the bias
        return ADMFeatures(*(part.float().cpu().numpy() for part in (pooled, spatial, probabilities)))


def tensorflow_resize(images: Tensor, size: int) -> Tensor:
    """Bilinear resize of the first TensorFlow, [N, C, H, W] to [N, C, size, size].

    Place i of the result lies at i * side / size of the image, whose edges continue.
    """
    for dimension in (2, 3):
        side = images.shape[dimension]
        places = torch.arange(size, device=images.device, dtype=torch.float64) * side / size
        low = places.long()
        high = (low + 1).clamp(max=side - 1)
        weight = (places - low).to(images.dtype).view(-1, 1) if dimension == 2 else (places - low).to(images.dtype)
        images = torch.lerp(images.index_select(dimension, low), images.index_select(dimension, high), weight)
    return images


def _clean_fid(module: str) -> ModuleType:
    try:
        return importlib.import_module(f"cleanfid.{module}")
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed; run `pip install 'cascade-diffusion[eval]'`") from error


def _pytorch_fid_network(file: Path) -> Any:
    """clean-fid's own network, with weights from `file` where clean-fid would download them unverified."""
    network: Any = _clean_fid("inception_pytorch")
    state = torch.load(file, map_location="cpu", weights_only=True)
    download = network.load_state_dict_from_url
    network.load_state_dict_from_url = lambda *args, **kwargs: state
    try:
        return network.InceptionV3(output_blocks=[3], resize_input=False)
    finally:
        network.load_state_dict_from_url = download
