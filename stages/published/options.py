"""Reading the configuration of a published network: the family's own option names, checked, never guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KEPT = (
    "family", "flags", "init_kwargs", "unet", "diffusion", "beta_schedule", "sampling_beta_schedule", "channel_mult",
    "num_classes", "channels_per_head", "low_res_size", "training_mode",
)  # fmt: skip
"""Keys of a configuration that say something about the network or its sampling; what else a config.json holds is commentary."""


def kept(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The part of a configuration that matters.

    Raises:
        ValueError: if it describes another family.
    """
    if config.get("family", family) != family:
        raise ValueError(f"the configuration describes a {config['family']} network, but the family asked for is {family}")
    return {"family": family, **{key: config[key] for key in KEPT if key in config}}


def section(config: Mapping[str, Any], name: str, needed: Sequence[str], known: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping `name` of a configuration with all `needed` options and no unknown ones.

    Raises:
        ValueError: if it is missing, lacks an option, or holds one that is neither `needed` nor `known`.
    """
    values = config.get(name)
    if not isinstance(values, Mapping):
        raise ValueError(f"the configuration has no {name!r} with the options of the {config.get('family', 'network')} family")
    if missing := sorted(set(needed) - set(values)):
        raise ValueError(
            f"the configuration's {name!r} lacks {', '.join(missing)}: the weights can't tell them, so they have to be given"
        )
    if unknown := sorted(set(values) - set(needed) - set(known)):
        raise ValueError(
            f"the configuration's {name!r} has unknown options {', '.join(unknown)}; known are {', '.join([*needed, *known])}"
        )
    return dict(values)
