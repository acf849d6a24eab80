"""Recipes as files: YAML to a checked `Recipe` and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cascade import typed
from cascade.files import CONFIGS
from cascade.schedulers import SCHEDULERS
from cascade.stages.base import BasePipeline
from cascade.stages.noise import LAWS, NoiseLaw, law_to_dict
from cascade.stages.regression import RegressionPipeline
from cascade.stages.sr3 import SR3Pipeline
from cascade.stages.stage import StagePipeline
from cascade.stages.training import Objective, Recipe
from cascade.stages.training.recipe import REGRESSION
from cascade.stages.training.start_from import DEFAULTS
from cascade.stages.unet import UNet

FIXED_BY_DATA = ("self", "num_classes")
FIXED_BY_TRAINING = ("self", "unet", "scheduler", "guide_unet", "id2label")
_NOT_RECIPES = ("presets", "protocols")


def load_recipe(path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """The recipe in a YAML file.

    Args:
        path: The file, or the name of a shipped recipe, as "emoji/base64"; a file of that name wins. Its keys are the fields of
            `Recipe`. `network` holds arguments of `cascade.stages.unet.UNet`, `sampling` those of the stage's pipeline and the
            short name of its `scheduler`, `objective.law` the `kind` of a noise law beside its fields.
        overrides: Values by dotted keys, as `{"optimization.learning_rate": 1e-4, "phases.0.images": 1000}`; or the same as
            texts, `key=value` with the value in YAML.

    Raises:
        ValueError: if there is no such recipe, it is not YAML, or a key or value is not what a recipe takes; it names file and
            key.
    """
    values = typed.read(_recipe_file(path))
    pairs = overrides.items() if isinstance(overrides, Mapping) else [_pair(override) for override in overrides]
    source = str(path)
    for key, value in pairs:
        _override(values, key, typed.plain(value))
        source += f" with {key}={value}"
    try:
        return _recipe(values)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: {error}") from error


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, as "emoji/base64"."""
    paths = (path.relative_to(CONFIGS).with_suffix("") for path in sorted(CONFIGS.rglob("*.yaml")))
    return [path.as_posix() for path in paths if path.parts[0] not in _NOT_RECIPES]


def pipeline_class(network: Mapping[str, Any], objective: Objective) -> type[StagePipeline]:
    """What a stage becomes that is trained so: by its network's settings and its objective."""
    if objective.kind == REGRESSION:
        return RegressionPipeline
    return BasePipeline if network.get("low_res_size") is None else SR3Pipeline


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe with every default written out, as plain values for JSON or YAML."""
    values = dataclasses.asdict(recipe)
    values["objective"]["law"] = law_to_dict(recipe.objective.law)
    return typed.plain(values)


def recipe_to_yaml(recipe: Recipe) -> str:
    """The text of a file from which `load_recipe` makes this recipe again."""
    return yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, width=120)


def _recipe_file(name: str | Path) -> Path:
    path = Path(name)
    if path.exists() and not path.is_dir():  # a pipe is refused by who reads it
        return path
    names, wanted = recipe_names(), path.as_posix().removesuffix(".yaml")
    if wanted not in names:
        raise ValueError(f"there is no recipe {name}: {typed.suggestion(wanted, names)}")
    return CONFIGS / f"{wanted}.yaml"


def _pair(override: str) -> tuple[str, Any]:
    """Key and value of `key=value`."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override!r} is not a setting, expected key=value, such as optimization.learning_rate=1e-4")
    try:
        return key, typed.parsed(text)
    except ValueError as error:
        raise ValueError(f"the value of {override!r} is not YAML: {error}") from error


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    """Put one value into the nested ones, by its dotted key."""
    *parents, last = key.split(".")
    place: Any = values
    for name in parents:
        place = place[_place(place, name, key)] if isinstance(place, list) else place.setdefault(name, {})
        if not isinstance(place, (dict, list)):
            raise ValueError(f"{key} can't be set: {name} is {typed.shown(place)}, which holds no further keys")
    place[_place(place, last, key) if isinstance(place, list) else last] = value


def _place(items: list[Any], name: str, key: str) -> int:
    if not (name.isdecimal() and int(name) < len(items)):
        raise ValueError(f"{key} can't be set: {name!r} is not a place in a list of {len(items)}, counted from 0")
    return int(name)


def _recipe(values: dict[str, Any]) -> Recipe:
    arguments = typed.arguments(Recipe.__init__, values, without=("self",), kinds={NoiseLaw: LAWS})
    network = typed.arguments(UNet.__init__, arguments["network"], "network", FIXED_BY_DATA)
    if "sample_size" not in network:
        raise ValueError("network.sample_size is missing; it is the side of the stage's images")
    recipe = Recipe(**{**arguments, "network": network, "sampling": _sampling(arguments, network)})
    full = DEFAULTS | network
    size, low_res_size, step = full["sample_size"], full["low_res_size"], full["patch_size"] * 2 ** (len(full["channels"]) - 1)
    for index, phase in enumerate(recipe.phases):
        if phase.size > size or phase.size % step:
            raise ValueError(
                f"phases.{index}.size is {phase.size}, expected at most network.sample_size {size} and divisible by {step},"
                " the network's patches and levels"
            )
        if low_res_size and phase.size * low_res_size % size:
            raise ValueError(
                f"phases.{index}.size is {phase.size}, which is not a whole number of pixels in the {low_res_size} px image"
            )
    return recipe


def _sampling(arguments: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the stage's pipeline, and the short name of its scheduler if it has one."""
    stage, given, named = pipeline_class(network, arguments.get("objective", Objective())), arguments.get("sampling", {}), {}
    if isinstance(given, Mapping) and "scheduler" in given and stage is not RegressionPipeline:
        given = dict(given)
        named = {"scheduler": given.pop("scheduler")}
        if named["scheduler"] not in list(SCHEDULERS):
            raise ValueError(f"sampling.scheduler is {typed.shown(named['scheduler'])}, expected one of {', '.join(SCHEDULERS)}")
    return named | typed.arguments(stage.__init__, given, "sampling", FIXED_BY_TRAINING)
