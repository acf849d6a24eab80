"""A further family, as a module of its own would define one: a layer that makes the picture in a single evaluation."""

from typing import Any

from diffusers import ModelMixin
from torch import Tensor, nn

from cascade.stages.published.consistency import ConsistencyScheduler
from cascade.stages.published.denoisers import SigmaDenoiser
from cascade.stages.published.family import Checkpoint, Config, Family, section


class Brush(nn.Module):
    """`network(x, sigma, y)`: the picture of a class, whatever the noise."""

    def __init__(self, size: int, num_classes: int) -> None:
        super().__init__()
        self.pictures = nn.Embedding(num_classes, 3 * size**2)

    def forward(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        return self.pictures(y).tanh().view_as(x)


def build(config: Config) -> Brush:
    return Brush(**section(config, "sizes", ("size", "num_classes")))


class BrushDenoiser(SigmaDenoiser, ModelMixin):
    def setup(self, published: Config) -> tuple[int, int | None]:
        self.network = build(published)
        self.num_classes = published["sizes"]["num_classes"]
        return published["sizes"]["size"], None


def sampler(config: Config) -> tuple[Any, dict[str, Any]]:
    return ConsistencyScheduler(steps=(0,)), {"num_inference_steps": 1}


FAMILY = Family(
    name="toy",
    project="https://example.org/toy",
    licence="MIT",
    config_keys=("sizes",),
    config_hint="'sizes'",
    build=build,
    denoiser=BrushDenoiser,
    sampler=sampler,
    own_tensors=lambda tensors, config: {key.removeprefix("ema."): value for key, value in tensors.items()},
    checkpoints=(
        Checkpoint(
            file="toy.pt",
            config={"sizes": {"size": 4, "num_classes": 5}},
            url="https://example.org/toy.pt",
            parameters=240,
            keys=1,
        ),
    ),
)
