"""Any diffusers pipeline that returns images, as the base stage of a cascade."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cascade.stages.stage import default_batch_size


class AnyBase:
    """Calls a pipeline that is not ours as a base stage: with what its call takes, one image per seed, images in [-1, 1].

    Args:
        pipeline: Its call needs no argument but `class_labels` (without it, `batch_size` is the number of images), and returns
            `images` in [0, 1] for `output_type="np"`, as those of diffusers do. They are as large as `pipeline.size` says if it
            has that attribute; otherwise as its network (`unet` or `transformer`, behind a `vae` if it has one) makes them.

    Raises:
        ValueError: if its call needs something else, or the size of its images can't be told.
    """

    def __init__(self, pipeline: Any) -> None:
        self.pipeline, self.name = pipeline, type(pipeline).__name__
        parameters = inspect.signature(pipeline.__call__).parameters.values()
        self.takes = {p.name for p in parameters}
        needs = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        if further := [name for name in needs if name != "class_labels"]:
            raise ValueError(
                f"{self.name} can't be the base of a cascade: its call needs {', '.join(further)}; a cascade has class_labels"
            )
        self.size = _size_of(pipeline)

    @property
    def takes_classes(self) -> bool:
        """Whether it wants a class for every image."""
        return "class_labels" in self.takes

    def __call__(
        self, labels: list[int] | None, generators: Sequence[torch.Generator], batch_size: int | None, **settings: Any
    ) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1], float32 on the CPU, one per generator.

        Args:
            labels: Class indices, one per image; None for a pipeline without classes.
            generators: Handed on if the call takes `generator`. Schedulers that draw from torch's own generator nevertheless (as
                in DiTPipeline) find that one seeded from the first image's.
            batch_size: Images at once; None = `stage.default_batch_size`.
            **settings: Arguments of its call; those that are None or that it doesn't take are left out.

        Raises:
            RuntimeError: if it doesn't return such images.
        """
        device = self.pipeline.device
        step = batch_size or default_batch_size(device, self.size)
        made = []
        for start in range(0, len(generators), step):
            part = list(generators[start : start + step])
            offered = {"generator": part, "output_type": "np", "batch_size": len(part)}
            if labels is not None and self.takes_classes:
                offered["class_labels"] = labels[start : start + step]
            arguments = {key: value for key, value in (settings | offered).items() if key in self.takes and value is not None}
            with torch.random.fork_rng(devices=[] if device.index is None else [device.index]):
                torch.manual_seed(part[0].initial_seed())
                made.append(self._checked(self.pipeline(**arguments).images, len(part)))
        return torch.cat(made)

    def _checked(self, images: Any, count: int) -> Tensor:
        """What it returned (PIL images, or an array [B, H, W, C] in [0, 1]) as images [B, 3, H, W] in [-1, 1]."""
        if isinstance(images, list):
            images = np.stack([np.asarray(image.convert("RGB")) for image in images]) / 255
        array = np.asarray(images, dtype=np.float32)
        expected = (count, self.size, self.size, 3)
        if array.shape != expected:
            raise RuntimeError(f"{self.name} made images of shape {array.shape}, expected {expected} ([B, H, W, C])")
        if not np.isfinite(array).all():
            raise RuntimeError(f"{self.name} made values that are not numbers (NaN or infinite); its weights are damaged")
        return torch.from_numpy(2 * array - 1).movedim(-1, 1).clamp(-1, 1).contiguous()


def _size_of(pipeline: Any) -> int:
    """Side of the images that a pipeline makes."""
    if isinstance(size := getattr(pipeline, "size", None), int):
        return size
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    size = getattr(getattr(network, "config", None), "sample_size", None)
    sides = {size} if isinstance(size, int) else set(size or ())
    if len(sides) != 1:
        raise ValueError(f"can't tell the size of the images that {type(pipeline).__name__} makes; give it an attribute `size`")
    vae = getattr(pipeline, "vae", None)
    return sides.pop() * (1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1))
