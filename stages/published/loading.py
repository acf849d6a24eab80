"""From a published weight file to the raw network, or to a stage of ours."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from cascade.stages.base import BasePipeline
from cascade.stages.published import weights as files
from cascade.stages.published.families import family_of, known
from cascade.stages.published.family import Config, Family
from cascade.stages.sr3 import SR3Pipeline


def load(family: str, weights: str | PathLike[str], config: Config | None = None) -> nn.Module:
    """The raw network of a published file, in float32, for evaluation; it is called as its family's module says.

    Args:
        family: A name in `cascade.stages.published.families.FAMILIES`.
        weights: Path of a .pt, .pth or .safetensors file, or a .pkl of EDM or EDM2. Nothing in it is ever run.
        config: The family's own options, as its project writes them; see the family's module. None for a published file that
            still has its name, and for a pickle.

    Raises:
        ValueError: if the family or an option is unknown, the file can't be read or asks for code, no configuration is known,
            or the tensors are not exactly those of the network.
    """
    network, _ = read(family_of(family), Path(weights), config, torch.float32)
    return network


def stage(family: str, weights: str | PathLike[str], config: Config | None = None) -> BasePipeline | SR3Pipeline:
    """A published file as a stage: its denoiser with the scheduler and settings that it was published with.

    Arguments as for `load`.

    Raises:
        ValueError: as `load`; and for a classifier, which is not a stage.
    """
    return assembled(family, Path(weights), config, torch.float32)


def assembled(family: str, path: Path, config: Config | None, dtype: torch.dtype | None) -> BasePipeline | SR3Pipeline:
    """As `stage`, with weights of number type `dtype`; None = as stored in the file, which stays memory-mapped."""
    record = family_of(family)
    if record.denoiser is None or record.sampler is None:
        raise ValueError(
            f"a {family} network makes no images: load it with cascade.stages.published.load and give it to ClassifierGuidance"
        )
    network, kept = read(record, path, config, dtype)
    with init_empty_weights():  # leaves the tables of noise levels alone, as torch.device("meta") would not
        denoiser = record.denoiser(published=kept).eval()
    denoiser.network = network
    scheduler, settings = record.sampler(kept)
    pipeline = BasePipeline if denoiser.config["low_res_size"] is None else SR3Pipeline
    return pipeline(denoiser, scheduler, **settings)


def read(family: Family, path: Path, config: Config | None, dtype: torch.dtype | None) -> tuple[nn.Module, dict[str, Any]]:
    """The raw network of a file, for evaluation, and the configuration that it was built by.

    Arguments as for `load` and `assembled`.
    """
    if config is not None and not isinstance(config, Mapping):
        raise ValueError(f"config is a {type(config).__name__}, expected a mapping with the options of the {family.name} family")
    found = known(path.name) if config is None else None
    if found and found[0] is not family:
        raise ValueError(f"{path.name} is a {found[0].name} checkpoint, but the family asked for is {family.name}")
    tensors, recorded = files.read(path, family)
    config = config or (found[1].config if found else recorded)
    if not config:
        raise ValueError(
            f"{path.name} is not a published file of {family.name} known by name, and its weights don't tell all of its options;"
            f" give a config with {family.config_hint}"
        )
    kept = family.kept(config)
    with torch.device("meta"):
        network = family.build(kept)
    files.fill(network, family.own_tensors(tensors, kept), path.name, dtype)
    return network.eval().requires_grad_(False), kept
