"""consistency_models: networks that map a noisy image to a clean one in a step or two (Song et al. 2023, arXiv:2303.01469).

Family `consistency`; configurations hold the flags of the project's scripts, and `training_mode` where it is not distillation or
consistency training: the project's own EDM teachers have "edm". The networks know no null class.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from cascade.stages.noise import like_image
from cascade.stages.published import edm, openai_flags
from cascade.stages.published.denoisers import SigmaDenoiser
from cascade.stages.published.edm import SIGMA_DATA
from cascade.stages.published.family import Checkpoint, Config, section
from cascade.stages.published.guided_diffusion import BY_SIZE
from cascade.stages.published.heun import EDMHeunScheduler
from cascade.stages.published.openai_unet import Architecture, UNet

_FLAGS = ("image_size", "sigma_min", "sigma_max", "num_head_channels", "resblock_updown", *openai_flags.NETWORK_FLAGS)
_OPTIONAL = ("num_heads_upsample", "channel_mult", "use_new_attention_order", *openai_flags.WITHOUT_EFFECT)
_STEPS: dict[str, dict[str, Any] | None] = {
    "consistency_distillation": {"num_levels": 40, "steps": (0, 22)},
    "consistency_training": {"num_levels": 201, "steps": (0, 106)},
    "edm": None,
}


class ConsistencyNetwork(UNet):
    """The raw network with its scalings: `network(x, sigma, y)` gives the denoised image.

    A consistency model leaves an image at `sigma_min` as it is; the EDM teacher of one has EDM's own scalings (`boundary` False).
    """

    def __init__(self, arch: Architecture, sigma_min: float, boundary: bool) -> None:
        super().__init__(arch)
        self.sigma_min, self.boundary = sigma_min, boundary

    def forward(self, x: Tensor, sigma: Tensor, y: Tensor | None = None) -> Tensor:
        """As `edm.Preconditioned.forward`; `y` are class indices, int64 [B], None exactly for an unconditional network."""
        c_skip, c_out, c_in = edm.preconditioning(sigma)
        if self.boundary:
            above = sigma - self.sigma_min
            c_skip = SIGMA_DATA**2 / (above**2 + SIGMA_DATA**2)
            c_out = above * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2) ** 0.5
        output = super().forward(like_image(c_in, x) * x, 250 * torch.log(sigma + 1e-44), y)
        return like_image(c_skip, x) * x + like_image(c_out, x) * output.to(x)


def build(config: Config) -> ConsistencyNetwork:
    """The raw network of a configuration. Its attention order is always the new one, whatever the flag says."""
    flags = section(config, "flags", _FLAGS, _OPTIONAL)
    arch = openai_flags.architecture(config, flags, BY_SIZE, flags["image_size"], attention_order="new", attention_dims=2)
    return ConsistencyNetwork(arch, flags["sigma_min"], boundary=levels_of(config) is not None)


def levels_of(config: Config) -> dict[str, Any] | None:
    """Noise levels and steps of a consistency model; None for the diffusion model that taught it. ValueError if it is neither."""
    mode = config.get("training_mode", "consistency_distillation")
    if mode not in _STEPS:
        raise ValueError(f"training_mode is {mode!r}, expected one of {', '.join(_STEPS)}")
    return _STEPS[mode]


class ConsistencyDenoiser(SigmaDenoiser, ModelMixin):
    """A consistency model, or the diffusion model that taught it, as a denoiser that predicts x0."""

    network: ConsistencyNetwork

    def setup(self, published: Config) -> tuple[int, int | None]:
        self.network = build(published)
        self.num_classes = self.network.arch.num_classes
        return published["flags"]["image_size"], None


class ConsistencyScheduler(SchedulerMixin, ConfigMixin):
    """One- and few-step sampling of a consistency model: denoise, add less noise, denoise (arXiv:2303.01469, Algorithm 1).

    The stock `CMStochasticIterativeScheduler` applies the model's scalings itself, so it can't be given a denoised image.

    Args:
        sigma_min, sigma_max, rho: Noise levels lie evenly between these two in `sigma^(1/rho)`.
        num_levels: Number of these levels.
        steps: Levels at which the model was published to be evaluated in so many steps; other numbers of steps are spread evenly.
    """

    order = 1
    init_noise_sigma: float

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        num_levels: int = 40,
        steps: Sequence[int] = (0, 22),
        prediction_type: str = "sample",
    ) -> None:
        self.init_noise_sigma = sigma_max
        self.set_timesteps(len(steps))

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose `num_inference_steps` levels; `sigmas` are theirs and sigma_min, `timesteps` the levels themselves."""
        count, steps, last, rho = num_inference_steps, self.config["steps"], self.config["num_levels"] - 1, self.config["rho"]
        levels = steps if count == len(steps) else [i * last / count for i in range(count)]
        places = torch.tensor([*levels, last], dtype=torch.float64) / last
        high, low = self.config["sigma_max"] ** (1 / rho), self.config["sigma_min"] ** (1 / rho)
        self.sigmas = ((high + places * (low - high)) ** rho).float().to(device)
        self.timesteps = torch.tensor(levels, dtype=torch.float32, device=device)
        self.step_index = 0

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """The variance preserving image of `sample`, whose noise has std sigma."""
        return sample / (float(self.sigmas[self.step_index]) ** 2 + 1) ** 0.5

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> SchedulerOutput:
        """The denoised images `model_output`, clipped to [-1, 1], with the noise of the next level; none after the last."""
        self.step_index += 1
        denoised = model_output.clamp(-1, 1)
        if self.step_index == len(self.timesteps):
            return SchedulerOutput(prev_sample=denoised)
        std = (float(self.sigmas[self.step_index]) ** 2 - self.config["sigma_min"] ** 2) ** 0.5
        noise = randn_tensor(denoised.shape, generator=generator, device=denoised.device, dtype=denoised.dtype)
        return SchedulerOutput(prev_sample=denoised + std * noise)


def sampler(config: Config) -> tuple[Any, dict[str, Any]]:
    """Two steps at the levels searched for the published models, exactly the original; EDM's sampler in 40 for a teacher."""
    steps, flags = levels_of(config), config["flags"]
    if steps is None:
        return EDMHeunScheduler(flags["sigma_min"], flags["sigma_max"]), {"num_inference_steps": 40}
    return ConsistencyScheduler(flags["sigma_min"], flags["sigma_max"], **steps), {"num_inference_steps": 2}


_IMAGENET: dict[str, Any] = {
    "sigma_min": 0.002, "sigma_max": 80.0, "image_size": 64, "num_channels": 192, "num_res_blocks": 3, "num_heads": 4,
    "num_head_channels": 64, "attention_resolutions": "32,16,8", "class_cond": True, "use_scale_shift_norm": True,
    "resblock_updown": True, "learn_sigma": False,
}  # fmt: skip
_LSUN = {**_IMAGENET, "image_size": 256, "num_channels": 256, "num_res_blocks": 2, "class_cond": False}


def _checkpoints(data: str, parameters: int, keys: int, flags: Config) -> list[Checkpoint]:
    modes = {
        f"edm_{data}_ema.pt": "edm", f"cd_{data}_l2.pt": "consistency_distillation",
        f"cd_{data}_lpips.pt": "consistency_distillation", f"ct_{data}.pt": "consistency_training",
    }  # fmt: skip
    files = [openai_flags.checkpoint("consistency", file, parameters, keys, flags) for file in modes]
    return [replace(file, config={**file.config, "training_mode": modes[file.file]}) for file in files]


FAMILY = openai_flags.family(
    name="consistency",
    project="https://github.com/openai/consistency_models",
    config_keys=(*openai_flags.CONFIG_KEYS, "training_mode"),
    build=build,
    denoiser=ConsistencyDenoiser,
    sampler=sampler,
    checkpoints=(
        *_checkpoints("imagenet64", 295_899_267, 541, _IMAGENET),
        *_checkpoints("bedroom256", 552_807_171, 566, _LSUN),
        *_checkpoints("cat256", 552_807_171, 566, _LSUN),
    ),
)
