"""Short names of diffusers' schedulers, as the command line, recipes and calls give them."""

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


def scheduler_class(name: str | type) -> Any:
    """The class of diffusers schedulers that a short name means; a class is given back as it is.

    Raises:
        ValueError: if it means none.
    """
    import diffusers

    if isinstance(name, type) and issubclass(name, diffusers.SchedulerMixin):
        return name
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler is {name!r}, expected one of {', '.join(SCHEDULERS)}, or a class of diffusers schedulers")
    return getattr(diffusers, SCHEDULERS[str(name)])
