"""Short names of diffusers' schedulers, as the command line and recipes give them."""

from __future__ import annotations

from typing import Any

SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
}

DEFAULT = "dpm++"
"""Of a trained stage whose recipe names none: DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095)."""


def scheduler_class(name: str) -> Any:
    """The class that a short name means.

    Raises:
        ValueError: if it means none.
    """
    import diffusers

    if name not in SCHEDULERS:
        raise ValueError(f"{name!r} is not one of {', '.join(SCHEDULERS)}")
    return getattr(diffusers, SCHEDULERS[name])
