"""What `cascade train --dry-run` shows: the whole recipe, and what its training run costs on this machine."""

from __future__ import annotations

from pathlib import Path

from cascade.cli.progress import duration
from cascade.stages.training import Recipe
from cascade.training.forecast import TYPICAL_SHARE, Forecast, fitting_accumulate, forecast
from cascade.training.recipes import recipe_to_yaml
from cascade.training.stage import summary

_DAY = 24 * 3600


def described(recipe: Recipe, folder: Path, target: Path) -> str:
    """The recipe as YAML, every default written out, then in comments its forecast and where things go."""
    told = forecast(recipe)
    lines = [summary(recipe, told.num_classes), *_missing(recipe, told), _work(recipe, told), *_memory(recipe, told)]
    lines += [_speed(recipe, told), f"run: {folder}, stage: {target}"]
    return recipe_to_yaml(recipe) + "\n".join(f"# {line}" for line in lines)


def _missing(recipe: Recipe, told: Forecast) -> list[str]:
    expected = recipe.data.classes
    assumed = "no classes assumed" if not expected else f"{expected} classes assumed, as data.classes says"
    return [] if told.missing is None else [f"pictures: not here, {assumed} ({told.missing})"]


def _work(recipe: Recipe, told: Forecast) -> str:
    size, cost = recipe.network["sample_size"], told.cost
    further = "" if cost.phase.size == size else f", {cost.image.multiply_adds / 1e9:.1f} at the {cost.phase.size} px of training"
    return f"work: {cost.evaluation / 1e9:.1f} GMAC per evaluation at {size} px{further}"


def _memory(recipe: Recipe, told: Forecast) -> list[str]:
    """Peak memory of a step, and what this machine can hold."""
    o, cost, phase = recipe.optimization, told.cost, told.cost.phase
    images, chosen = phase.batch_size // o.accumulate, o.gradient_checkpointing
    peak = cost.memory(images, chosen)
    parts = cost.fixed | {"activations": peak - sum(cost.fixed.values())}
    sum_of_parts = ", ".join(f"{name} {_amount(size)}" for name, size in parts.items())
    plain, thin = (cost.memory(1, checkpointing) - cost.memory(0, checkpointing) for checkpointing in (False, True))
    fitting = [cost.images_within(told.memory, checkpointing) for checkpointing in (False, True)]
    better = None if images <= fitting[chosen] else fitting_accumulate(phase.batch_size, o.accumulate, fitting[chosen])
    return [
        f"memory: {_amount(peak)} for a step of {images} images of {phase.size} px at once in {o.precision}: {sum_of_parts}",
        f"memory per image: {_amount(plain)}, with gradient checkpointing {_amount(thin)}; {_amount(told.memory)} of this"
        f" {told.device} hold {fitting[0]:,} at once, with it {fitting[1]:,}"
        + ("" if better is None else f"; optimization.accumulate={better} would fit"),
    ]


def _amount(size: float) -> str:
    """Bytes as people say them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _speed(recipe: Recipe, told: Forecast) -> str:
    speed, days = told.speed, told.seconds / _DAY
    if speed.measured_with:
        how = f"timed in steps of {speed.measured_with} images"
    else:
        rate = f"{speed.convolution_rate / 1e9:.0f} GFLOP/s"
        how = f"estimated as {TYPICAL_SHARE:.0%} of this {told.device}'s convolution rate of {rate}; a step would take too long"
    whole = duration(told.seconds) if days < 2 else f"{days:,.0f} days" if days < 1000 else f"{days / 365.25:,.0f} years"
    return f"speed: {speed.images_per_second:.3g} images/s, {how}; {recipe.total_images:,} images take {whole}"
