"""The sampler that each published family came with, as a diffusers scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import DDPMScheduler, EDMDPMSolverMultistepScheduler

from cascade.stages.published.consistency import ConsistencyScheduler, is_distilled
from cascade.stages.published.edm import SIGMA_DATA
from cascade.stages.published.janspiry import sampling_schedule

OPENAI_STEPS = 250
EDM_STEPS = 32
"""Steps that the papers' figures were measured with; EDM's were of second order too."""


def scheduler_of(family: str, config: Mapping[str, Any]) -> tuple[Any, int]:
    """Scheduler of a configuration, and the number of steps it was published with.

    improved- and guided-diffusion: respaced ancestral sampling with the learned variance, exactly the original. SR3: ancestral
    sampling
    over all steps of its schedule, exactly the original. Consistency models: `ConsistencyScheduler`, exactly the original. EDM
    and EDM2: the original is Heun's method on the same sigmas; the stock scheduler for them, a multistep solver of second
    order, needs half the evaluations and is used instead.
    """
    if family in ("sr3", "sr3-ddpm"):
        schedule = sampling_schedule(config)
        betas = {"beta_start": schedule.beta_start, "beta_end": schedule.beta_end, "num_train_timesteps": schedule.num_steps}
        return DDPMScheduler(beta_schedule="linear", variance_type="fixed_small", clip_sample=True, **betas), schedule.num_steps
    if family == "consistency" and is_distilled(config):
        return consistency_scheduler(config)
    if family in ("edm", "edm2", "consistency"):
        return EDMDPMSolverMultistepScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=SIGMA_DATA, rho=7.0), EDM_STEPS
    return openai_scheduler(config["flags"]), OPENAI_STEPS


def openai_scheduler(flags: Mapping[str, Any]) -> DDPMScheduler:
    """Ancestral sampling as OpenAI's scripts do it; "linspace" is their even respacing."""
    steps = flags["diffusion_steps"]
    linear = {"beta_schedule": "linear", "beta_start": 0.1 / steps, "beta_end": 20 / steps}
    fixed = "fixed_small" if flags.get("sigma_small") else "fixed_large"
    return DDPMScheduler(
        num_train_timesteps=steps,
        variance_type="learned_range" if flags["learn_sigma"] else fixed,
        clip_sample=True,
        prediction_type="sample" if flags["predict_xstart"] else "epsilon",
        timestep_spacing="linspace",
        **(linear if flags["noise_schedule"] == "linear" else {"beta_schedule": "squaredcos_cap_v2"}),
    )


def consistency_scheduler(config: Mapping[str, Any]) -> tuple[ConsistencyScheduler, int]:
    """Two steps at the levels searched for the published models: 22 of 40 when distilled, 106 of 201 when trained alone."""
    flags = config["flags"]
    levels, second = (201, 106) if config.get("training_mode") == "consistency_training" else (40, 22)
    sigmas = {"sigma_min": flags["sigma_min"], "sigma_max": flags["sigma_max"]}
    return ConsistencyScheduler(num_levels=levels, steps=(0, second), **sigmas), 2
