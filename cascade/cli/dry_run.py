"""What `cascade train --dry-run` shows: the whole recipe, and what its training costs on this machine."""

from __future__ import annotations

from pathlib import Path

from accelerate import init_empty_weights

from cascade.cli.progress import duration
from cascade.stages.training import Recipe
from cascade.stages.unet import UNet
from cascade.training.forecast import TYPICAL_SHARE, TrainingCost, this_device, total_memory, training_cost, training_speed
from cascade.training.recipes import recipe_to_yaml
from cascade.training.stage import class_names

_DAY = 24 * 3600


def described(recipe: Recipe, folder: Path, target: Path) -> str:
    """The recipe as YAML, every default written out, then in comments its costs and where things go.

    Pictures that are not on this machine are no mistake: the number of classes is the recipe's then.

    Raises:
        ValueError: if the recipe contradicts its pictures, or its network can't be built.
    """
    num_classes, remarks = _classes(recipe)
    cost = training_cost(recipe, num_classes)
    lines = [
        summary(recipe, num_classes),
        *remarks,
        _work(recipe, cost),
        *_memory(recipe, cost),
        _speed(recipe, num_classes, cost),
    ]
    return recipe_to_yaml(recipe) + "".join(f"# {line}\n" for line in lines) + f"# run: {folder}, stage: {target}"


def _classes(recipe: Recipe) -> tuple[int | None, list[str]]:
    """The number of classes that the network will tell apart, and what is to be said about the pictures."""
    try:
        found = len(class_names(recipe))
    except (ValueError, OSError) as error:
        expected = recipe.data.classes
        assumed = "no classes assumed" if not expected else f"{expected} classes assumed, as data.classes says"
        return expected or None, [f"pictures: not here, {assumed} ({error})"]
    return recipe.num_classes(found), []


def summary(recipe: Recipe, num_classes: int | None) -> str:
    """The training in one line. Building the network, without memory, checks its settings.

    Raises:
        ValueError: if they don't describe a network.
    """
    with init_empty_weights():
        network = UNet(**recipe.network, num_classes=num_classes)
    size, low_res_size = recipe.network["sample_size"], recipe.network.get("low_res_size")
    sizes = f"{low_res_size} -> {size} px" if low_res_size else f"{size} px"
    classes = "no classes" if num_classes is None else f"{num_classes} classes"
    return f"{recipe.name}: {sizes}, {classes}, {network.num_parameters():,} parameters, {recipe.total_images:,} images"


def _work(recipe: Recipe, cost: TrainingCost) -> str:
    size, phase = recipe.network["sample_size"], cost.phase
    further = "" if phase.size == size else f", {cost.image.multiply_adds / 1e9:.1f} at the {phase.size} px of training"
    return f"work: {cost.evaluation / 1e9:.1f} GMAC an evaluation at {size} px{further}"


def _memory(recipe: Recipe, cost: TrainingCost) -> list[str]:
    """Peak memory of a step, and what this machine can hold."""
    o, phase, total = recipe.optimization, cost.phase, total_memory(this_device())
    images, chosen = phase.batch_size // o.accumulate, o.gradient_checkpointing
    peak = cost.memory(images, chosen)
    parts = cost.fixed | {"activations": peak - sum(cost.fixed.values())}
    sum_of_parts = ", ".join(f"{name} {_amount(size)}" for name, size in parts.items())
    plain, thin = (cost.memory(1, checkpointing) - cost.memory(0, checkpointing) for checkpointing in (False, True))
    fitting = [cost.images_within(total, checkpointing) for checkpointing in (False, True)]
    return [
        f"memory: {_amount(peak)} for a step of {images} images of {phase.size} px at once in {o.precision}: {sum_of_parts}",
        f"memory of an image: {_amount(plain)}, with gradient checkpointing {_amount(thin)}; {_amount(total)} of this"
        f" {this_device().type} hold {fitting[0]:,} at once, with it {fitting[1]:,}"
        + _advice(phase.batch_size, o.accumulate, fitting[chosen]),
    ]


def _amount(size: float) -> str:
    """Bytes as people say them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _advice(batch_size: int, accumulate: int, fitting: int) -> str:
    """Which `accumulate` makes a step fit that does not."""
    if batch_size // accumulate <= fitting:
        return ""
    parts = [parts for parts in range(accumulate, batch_size + 1) if batch_size % parts == 0 and batch_size // parts <= fitting]
    return f"; optimization.accumulate={parts[0]} would fit" if parts else ""


def _speed(recipe: Recipe, num_classes: int | None, cost: TrainingCost) -> str:
    speed, device = training_speed(recipe, num_classes, cost), this_device().type
    if speed.measured_with:
        how = f"timed in steps of {speed.measured_with} images"
    else:
        rate = f"{speed.convolution_rate / 1e9:.0f} GFLOP/s"
        how = f"reckoned as {TYPICAL_SHARE:.0%} of this {device}'s convolution rate of {rate}, as a step would take too long"
    seconds = recipe.total_images / speed.images_per_second
    days = seconds / _DAY
    whole = duration(seconds) if days < 2 else f"{days:,.0f} days" if days < 1000 else f"{days / 365.25:,.0f} years"
    return f"speed: {speed.images_per_second:.3g} images/s, {how}; {recipe.total_images:,} images take {whole}"
