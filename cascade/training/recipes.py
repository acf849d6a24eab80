"""Typed configuration files: YAML to a training recipe and back, every key and every type checked."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from cascade.files import CONFIGS
from cascade.schedulers import SCHEDULERS
from cascade.stages.base import BasePipeline
from cascade.stages.noise import LAWS, NoiseLaw, law_to_dict
from cascade.stages.regression import RegressionPipeline
from cascade.stages.sr3 import SR3Pipeline
from cascade.stages.stage import StagePipeline
from cascade.stages.training import Objective, Recipe
from cascade.stages.training.recipe import REGRESSION
from cascade.stages.unet import UNet

_FIXED_BY_DATA = ("self", "num_classes")
_COMPONENTS = ("self", "unet", "scheduler", "guide_unet")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file.

    Args:
        path: The file; its keys are the fields of `Recipe`. `network` holds arguments of `cascade.stages.unet.UNet`,
            `sampling` those of the stage's pipeline and the short name of its `scheduler`, `objective.law` the `kind` of a noise
            law beside its fields.
        overrides: `key=value` with dotted keys, as `optimization.learning_rate=1e-4` or `phases.0.images=1000`; values are YAML.

    Raises:
        ValueError: if the file is missing or not YAML, or a key or value is not what a recipe takes; it names file and key.
    """
    values = _read(Path(path))
    for override in overrides:
        _override(values, override)
    source = str(path) + "".join(f" with {override}" for override in overrides)
    try:
        return _recipe(values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def pipeline_class(network: Mapping[str, Any], objective: Objective) -> type[StagePipeline]:
    """What a stage becomes that is trained so: by its network's settings and its objective."""
    if objective.kind == REGRESSION:
        return RegressionPipeline
    return BasePipeline if network.get("low_res_size") is None else SR3Pipeline


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe with every default written out, as plain values for JSON or YAML."""
    values = dataclasses.asdict(recipe)
    values["objective"]["law"] = law_to_dict(recipe.objective.law)
    return _plain(values)


def recipe_to_yaml(recipe: Recipe) -> str:
    """The text of a file from which `load_recipe` makes this recipe again."""
    return yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, width=120)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 8e-4 is a number, as in YAML 1.2, and a key can't be given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise ValueError(f"the key {twice[0]} is given twice (line {node.start_mark.line + 1} and on)")
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _parsed(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _read(path: Path) -> dict[str, Any]:
    try:
        values = _parsed(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no recipe {path}; those of the project are in {CONFIGS}") from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ValueError(f"{path} can't be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {_shown(values)}, expected a mapping with the keys of a recipe")
    return values


def _override(values: dict[str, Any], override: str) -> None:
    """Put one `key=value` into the nested values."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override!r} is no setting, expected key=value, such as optimization.learning_rate=1e-4")
    try:
        value = _parsed(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"the value of {override!r} is no YAML: {' '.join(str(error).split())}") from error
    *parents, last = key.split(".")
    place: Any = values
    for name in parents:
        place = place[_place(place, name, key)] if isinstance(place, list) else place.setdefault(name, {})
        if not isinstance(place, (dict, list)):
            raise ValueError(f"{override!r} can't be set: {name} is {_shown(place)}, which holds no further keys")
    place[_place(place, last, key) if isinstance(place, list) else last] = value


def _place(items: list[Any], name: str, key: str) -> int:
    if not (name.isdecimal() and int(name) < len(items)):
        raise ValueError(f"{key} can't be set: {name!r} is no place in a list of {len(items)}, counted from 0")
    return int(name)


def _recipe(values: dict[str, Any]) -> Recipe:
    arguments = _arguments(Recipe.__init__, values, "", ("self",))
    network = _arguments(UNet.__init__, arguments["network"], "network", _FIXED_BY_DATA)
    if "sample_size" not in network:
        raise ValueError("network.sample_size is missing; it is the side of the stage's images")
    recipe = Recipe(**{**arguments, "network": network, "sampling": _sampling(arguments, network)})
    _check_sizes(recipe)
    return recipe


def _sampling(arguments: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the stage's pipeline, and the short name of its scheduler if it has one."""
    stage, given = pipeline_class(network, arguments.get("objective", Objective())), arguments.get("sampling", {})
    if not isinstance(given, Mapping) or "scheduler" not in given or stage is RegressionPipeline:
        return _arguments(stage.__init__, given, "sampling", _COMPONENTS)
    name = given["scheduler"]
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise ValueError(f"sampling.scheduler is {_shown(name)}, expected one of {', '.join(SCHEDULERS)}")
    others = {key: value for key, value in given.items() if key != "scheduler"}
    return {"scheduler": name, **_arguments(stage.__init__, others, "sampling", _COMPONENTS)}


def _check_sizes(recipe: Recipe) -> None:
    """Whether the network can be trained at the sizes of the phases."""
    network = {**_defaults(UNet.__init__), **recipe.network}
    size, low_res_size = network["sample_size"], network["low_res_size"]
    step = network["patch_size"] * 2 ** (len(network["channels"]) - 1)
    for index, phase in enumerate(recipe.phases):
        if phase.size > size or phase.size % step:
            raise ValueError(
                f"phases.{index}.size is {phase.size}, expected at most network.sample_size {size} and divisible by {step},"
                " the network's patches and levels"
            )
        if low_res_size and phase.size * low_res_size % size:
            raise ValueError(
                f"phases.{index}.size is {phase.size}, which is no whole number of pixels in the {low_res_size} px image"
            )


def _arguments(function: Callable[..., Any], values: Any, key: str, without: Sequence[str]) -> dict[str, Any]:
    """The values, a mapping, converted to what `function` takes as arguments; `without` names those that can't be given."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{key or 'the file'} is {_shown(values)}, expected a mapping of keys to values")
    hints = get_type_hints(function)
    parameters = {name: p for name, p in inspect.signature(function).parameters.items() if name not in without}
    for name in values:
        if name not in parameters:
            close = difflib.get_close_matches(str(name), parameters, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"it may be one of {', '.join(parameters)}"
            raise ValueError(f"unknown key {_joined(key, name)!r}; {hint}")
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in values]
    if missing:
        raise ValueError(f"{_joined(key, missing[0])} is missing")
    return {name: _converted(value, hints[name], _joined(key, name)) for name, value in values.items()}


def _converted(value: Any, hint: Any, key: str) -> Any:
    """The value as the annotation `hint` wants it, or ValueError."""
    if hint == NoiseLaw:
        return _law(value, key)
    if dataclasses.is_dataclass(hint):
        return hint(**_arguments(hint.__init__, value, key, ("self",)))  # type: ignore[operator,misc]  # a class, checked above
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # only ever "X | None"
        return None if value is None else _converted(value, next(a for a in inner if a is not types.NoneType), key)
    if origin in (tuple, Sequence):
        if not isinstance(value, list):
            raise ValueError(f"{key} is {_shown(value)}, expected a list")
        items = [_converted(item, inner[0], _joined(key, index)) for index, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    return _scalar(value, hint, key)


def _scalar(value: Any, hint: Any, key: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int and number and value == value // 1:
        return int(value)
    if hint is float and number:
        return float(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    if hint not in (int, float, bool, str):  # a mapping that the caller checks itself
        return value
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]
    raise ValueError(f"{key} is {_shown(value)}, expected {expected}")


def _law(value: Any, key: str) -> NoiseLaw:
    if not isinstance(value, Mapping) or value.get("kind") not in LAWS:
        got = value.get("kind") if isinstance(value, Mapping) else value
        raise ValueError(f"{_joined(key, 'kind')} is {_shown(got)}, expected one of {', '.join(LAWS)}")
    law = LAWS[value["kind"]]
    fields = {name: field for name, field in value.items() if name != "kind"}
    return law(**_arguments(law.__init__, fields, key, ("self",)))  # type: ignore[misc]  # of any class of LAWS


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


def _joined(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _shown(value: Any) -> str:
    """A value as an error message quotes it."""
    if value is None:
        return "empty"
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value)


def _plain(value: Any) -> Any:
    """Nested values with lists instead of tuples."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
