"""What is known of a family of published checkpoints, as one record; and its configurations, checked, never guessed."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from cascade.stages.published.denoisers import PublishedDenoiser

Config = Mapping[str, Any]
"""A family's own options by name, as its project writes them."""

NON_COMMERCIAL = "CC BY-NC-SA 4.0, non-commercial use only"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A published file.

    config: The configuration of its network, with the flags of the project's own instructions for it.
    parameters, keys: Learned numbers and tensors of the network; some files hold constants beside them.
    pattern: Regular expression of the names of all files of the same network, published beside each other; None = this one only.
    """

    file: str
    config: Config
    url: str
    parameters: int
    keys: int
    pattern: str | None = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks of one kind that a project published.

    name: As `cascade.stages.published.load` takes it, and as converted stages record it.
    licence: Of the published weights, as the project's repository states it.
    config_keys: Parts of a configuration that say something about the network or its sampling; what else one holds is commentary.
    config_hint: What a configuration has to hold, in words that follow "with".
    build: The raw network of a configuration; ValueError if an option is missing, unknown or impossible.
    denoiser: The network as a `Denoiser`, and so as a stage; None for networks that make no images. Its module path is written in
        converted stages: it never moves.
    sampler: By configuration, the scheduler that a stage comes with, and the pipeline's settings; None without a `denoiser`.
    own_tensors: Tensors of a file by the network's own names, without what the file holds beside them; ValueError if that
        contradicts the configuration.
    classifier: Networks that make no images as a stage's `guide_unet`; its module path never moves either. None for others.
    pickled_classes: Classes that the network of a .pkl file is made of; none = no pickle of the family is read.
    average: Name of the weights that the authors sample with, in files that hold several sets of them; None = files hold one set.
        A configuration that has `average` names another.
    told_by_shapes: Whether the shapes of its tensors tell which configuration a file has, as all are published by one name.
    """

    name: str
    project: str
    licence: str
    config_keys: tuple[str, ...]
    config_hint: str
    build: Callable[[Config], nn.Module]
    checkpoints: tuple[Checkpoint, ...]
    denoiser: type[PublishedDenoiser] | None = None
    sampler: Callable[[Config], tuple[Any, dict[str, Any]]] | None = None
    own_tensors: Callable[[Mapping[str, Tensor], Config], Mapping[str, Tensor]] = lambda tensors, config: tensors
    classifier: type[Any] | None = None
    pickled_classes: frozenset[str] = frozenset()
    average: str | None = None
    told_by_shapes: bool = False

    def known(self, file: str) -> Checkpoint | None:
        """The published checkpoint of a file name; None for another name."""
        for checkpoint in self.checkpoints:
            if re.fullmatch(checkpoint.pattern or re.escape(checkpoint.file), file):
                return replace(checkpoint, file=file, url=checkpoint.url.replace(checkpoint.file, file))
        return None

    def kept(self, config: Config) -> dict[str, Any]:
        """The part of a configuration that matters, with the family's name; ValueError if it describes another family."""
        if config.get("family", self.name) != self.name:
            raise ValueError(f"the configuration is of family {config['family']}, but the family asked for is {self.name}")
        return {"family": self.name, **{key: config[key] for key in self.config_keys if key in config}}


def section(config: Config, name: str, needed: Sequence[str], known: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping `name` of a configuration; ValueError unless it has all `needed` options, and no others but `known` ones."""
    values = config.get(name)
    if not isinstance(values, Mapping):
        raise ValueError(f"the configuration has no {name!r} with the options of the {config.get('family', 'network')} family")
    if missing := sorted(set(needed) - set(values)):
        raise ValueError(f"the configuration's {name!r} lacks {', '.join(missing)}: the weights can't tell them, so give them")
    if unknown := sorted(set(values) - set(needed) - set(known)):
        options = ", ".join([*needed, *known])
        raise ValueError(f"the configuration's {name!r} has unknown options {', '.join(unknown)}; known are {options}")
    return dict(values)
