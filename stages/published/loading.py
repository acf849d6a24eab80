"""From a published weight file to the raw network, or to a stage of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from cascade.stages.base import BasePipeline
from cascade.stages.published import (
    catalogue,
    consistency,
    edm,
    edm2,
    guided_diffusion,
    improved_diffusion,
    janspiry,
    samplers,
    weights,
)
from cascade.stages.published.clock import PublishedDenoiser
from cascade.stages.published.options import kept
from cascade.stages.sr3 import SR3Pipeline

BUILDERS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "guided-diffusion": guided_diffusion.build,
    "guided-diffusion-sr": guided_diffusion.build_sr,
    "guided-diffusion-classifier": guided_diffusion.build_classifier,
    "improved-diffusion": improved_diffusion.build,
    "improved-diffusion-sr": improved_diffusion.build_sr,
    "consistency": consistency.build,
    "edm": edm.build,
    "edm2": edm2.build,
    "sr3": janspiry.build,
    "sr3-ddpm": janspiry.build,
}
DENOISERS: dict[str, type[PublishedDenoiser]] = {
    "guided-diffusion": guided_diffusion.GuidedDiffusionDenoiser,
    "guided-diffusion-sr": guided_diffusion.GuidedDiffusionDenoiser,
    "improved-diffusion": improved_diffusion.ImprovedDiffusionDenoiser,
    "improved-diffusion-sr": improved_diffusion.ImprovedDiffusionDenoiser,
    "consistency": consistency.ConsistencyDenoiser,
    "edm": edm.EDMDenoiser,
    "edm2": edm2.EDM2Denoiser,
    "sr3": janspiry.JanspirySR3Denoiser,
    "sr3-ddpm": janspiry.JanspiryDDPMDenoiser,
}


def load(family: str, weights: str | PathLike[str], config: Mapping[str, Any] | None = None) -> nn.Module:
    """The raw network of a published file, in float32, for evaluation.

    It is called by keyword with the family's own arrays: `x`, `timesteps`, `y` (and `low_res`) for improved- and
    guided-diffusion, `x`, `sigma`, `y` for consistency models, `x`, `sigma`, `class_labels` for EDM and EDM2, `x`, `cond` and
    `noise_level` (or `t`) for SR3; `x`, `timesteps` for classifiers. See each family's module.

    Args:
        family: One of `BUILDERS`.
        weights: Path of a .pt, .pth or .safetensors file, or a .pkl of EDM or EDM2. Nothing in it is ever run.
        config: The family's own options: `flags` of OpenAI's scripts, `init_kwargs` of EDM's constructors, or the sections
            `unet`, `diffusion` and `beta_schedule` of SR3. None for a published file that still has its name, and for a pickle.

    Raises:
        ValueError: if the family or an option is unknown, the file can't be read or asks for code, no configuration is known,
            or the tensors are not exactly those of the network.
    """
    network, _ = read(family, Path(weights), config, torch.float32)
    return network


def stage(family: str, weights: str | PathLike[str], config: Mapping[str, Any] | None = None) -> BasePipeline | SR3Pipeline:
    """A published file as a stage: its denoiser with the scheduler and number of steps that it was published with.

    Args:
        family: One of `DENOISERS`.
        weights: As for `load`.
        config: As for `load`.

    Raises:
        ValueError: as `load`; and for a classifier, which is no stage.
    """
    network, config = read(stage_family(family), Path(weights), config, torch.float32)
    denoiser = empty_denoiser(family, config)
    denoiser.network = network
    return pipeline_of(family, config, denoiser)


def stage_family(family: str) -> str:
    """`family`, if its networks make images.

    Raises:
        ValueError: if they are classifiers.
    """
    if family in BUILDERS and family not in DENOISERS:
        raise ValueError(
            f"a {family} network makes no images: load it with stages.published.load and give it to ClassifierGuidance"
        )
    return family


def empty_denoiser(family: str, config: Mapping[str, Any]) -> PublishedDenoiser:
    """The denoiser of a configuration, for evaluation, without weights (on the meta device)."""
    with init_empty_weights():  # leaves the tables of noise levels alone, as torch.device("meta") would not
        denoiser = DENOISERS[family](published=config)
    return denoiser.eval()


def pipeline_of(family: str, config: Mapping[str, Any], denoiser: PublishedDenoiser) -> BasePipeline | SR3Pipeline:
    """The stage of a denoiser, with the scheduler and number of steps that its family was published with."""
    scheduler, num_inference_steps = samplers.scheduler_of(family, config)
    pipeline = BasePipeline if denoiser.config["low_res_size"] is None else SR3Pipeline
    return pipeline(denoiser, scheduler, num_inference_steps=num_inference_steps)


def read(
    family: str, path: Path, config: Mapping[str, Any] | None, dtype: torch.dtype | None
) -> tuple[nn.Module, dict[str, Any]]:
    """The raw network of a file, for evaluation, and the configuration that it was built by.

    Arguments as for `load`; `dtype` is the number type of the weights, None = as stored in the file, which stays memory-mapped.
    """
    if family not in BUILDERS:
        raise ValueError(f"family is {family!r}, expected one of {', '.join(BUILDERS)}")
    if config is not None and not isinstance(config, Mapping):
        raise ValueError(f"config is a {type(config).__name__}, expected a mapping with the options of the {family} family")
    checkpoint = catalogue.known(path.name) if config is None else None
    if checkpoint is not None and checkpoint.family != family:
        raise ValueError(f"{path.name} is a {checkpoint.family} checkpoint, but the family asked for is {family}")
    tensors, recorded = weights.read(path, family)
    config = config or (checkpoint.config if checkpoint else recorded)
    if not config:
        raise ValueError(
            f"{path.name} is no published file of {family} known by name, and its weights don't tell all of its options;"
            f" give a config with {NEEDED[family]}"
        )
    config = kept(config, family)
    with torch.device("meta"):
        network = BUILDERS[family](config)
    weights.fill(network, _own_tensors(family, tensors, config), path.name, dtype)
    return network.eval().requires_grad_(False), config


NEEDED = {
    **dict.fromkeys(BUILDERS, "'flags', the options of the project's scripts"),
    **dict.fromkeys(("edm", "edm2"), "'init_kwargs', the arguments of the network's constructor"),
    **dict.fromkeys(("sr3", "sr3-ddpm"), "the sections 'unet', 'diffusion' and 'beta_schedule' of the project's JSON file"),
}


def _own_tensors(family: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The network's tensors of a file, without constants that some families store beside them."""
    if family == "edm":
        return edm.drop_constants(tensors)
    return janspiry.network_tensors(tensors, config) if family in ("sr3", "sr3-ddpm") else tensors
