"""All families of published checkpoints. A further one is a module with its record, and its line here."""

from cascade.stages.published import consistency, edm, edm2, guided_diffusion, improved_diffusion, janspiry, jit, pmf
from cascade.stages.published.family import Checkpoint, Family

FAMILIES: tuple[Family, ...] = (
    guided_diffusion.BASE,
    guided_diffusion.UPSAMPLER,
    guided_diffusion.CLASSIFIER,
    improved_diffusion.BASE,
    improved_diffusion.UPSAMPLER,
    consistency.FAMILY,
    edm.FAMILY,
    edm2.FAMILY,
    janspiry.SR3,
    janspiry.DDPM,
    jit.FAMILY,
    pmf.FAMILY,
)


def family_of(name: str) -> Family:
    """The family of a name; ValueError if there is none."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ValueError(f"family is {name!r}, expected one of {', '.join(family.name for family in FAMILIES)}")


def known(file: str) -> tuple[Family, Checkpoint] | None:
    """The published checkpoint of a file name, and its family; None for another name."""
    return next(((family, checkpoint) for family in FAMILIES if (checkpoint := family.known(file))), None)
