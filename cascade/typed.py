"""The one reader from YAML to checked values: dataclasses, and arguments of functions. Every key and every type is checked."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import re
import types
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from cascade.files import read_text

_Value = TypeVar("_Value")
MOST_BYTES = 2**18
"""Of a YAML file: a recipe takes some thousands, and the reader some seconds for this many."""

Kinds = Mapping[str, Any]
"""The class of each kind."""


@cache
def _loader() -> type[Any]:
    """Safe YAML in which 8e-4 is a number, as in YAML 1.2, and a key can't be given twice."""
    import yaml  # here, so that commands that read none answer at once

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            counts = Counter(map(repr, keys))
            twice = [key for key in keys if counts[repr(key)] > 1]
            if twice:
                raise ValueError(f"the key {str(twice[0])[:80]} is given twice (line {node.start_mark.line + 1} and on)")
            return super().construct_mapping(node, deep)

    number = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Loader


def parsed(text: str) -> Any:
    """The value that a text means as YAML. Raises ValueError if it is not YAML."""
    from yaml import YAMLError

    try:
        loader = _loader()(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (YAMLError, RecursionError, KeyError, TypeError, AttributeError, OverflowError) as error:  # the last at odd !!tags
        raise ValueError(" ".join((str(error) or type(error).__name__)[:400].split())) from error


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ValueError if it can't be read or holds something else; it names the file."""
    try:
        values = parsed(read_text(path, MOST_BYTES))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} can't be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {shown(values)}, expected a mapping of keys to values")
    return values


def build(kind: Callable[..., _Value], values: Any, key: str = "", kinds: Mapping[Any, Kinds] = {}) -> _Value:
    """A dataclass from the mapping of its fields.

    Args:
        kind: The dataclass.
        values: Plain values, as YAML and JSON have them.
        key: Where they stand, for errors: the dotted keys above them.
        kinds: For types of inner values whose class is chosen by their `kind`: the class of each.

    Raises:
        ValueError: for an unknown or missing key, or a value of another type; it names the dotted key.
    """
    return kind(**arguments(kind.__init__, values, key, ("self",), kinds))  # type: ignore[misc]  # of a class, not an instance


def arguments(
    function: Callable[..., Any], values: Any, key: str = "", without: Sequence[str] = (), kinds: Mapping[Any, Kinds] = {}
) -> dict[str, Any]:
    """The values, a mapping, converted to what `function` takes as arguments; `without` names those that can't be given.

    Errors as of `build`.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{key or 'the file'} is {shown(values)}, expected a mapping of keys to values")
    hints = get_type_hints(function)
    parameters = {name: p for name, p in inspect.signature(function).parameters.items() if name not in without}
    for name in values:
        if name not in parameters:
            raise ValueError(f"unknown key {_joined(key, name)!r}; {suggestion(str(name), parameters)}")
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in values]
    if missing:
        raise ValueError(f"{_joined(key, missing[0])} is missing")
    return {name: _converted(value, hints[name], _joined(key, name), kinds) for name, value in values.items()}


def suggestion(name: str, known: Iterable[str]) -> str:
    """The close one among the names that there are, or else all of them, as the end of an error message."""
    known = list(known)
    close = difflib.get_close_matches(name[:80], known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"it may be one of {', '.join(known)}"


def shown(value: Any) -> str:
    """A value as an error message quotes it."""
    if value is None:
        return "empty"
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value) if len(str(value)) < 200 else f"{str(value)[:200]}..."


def plain(value: Any) -> Any:
    """Nested values as YAML and JSON have them: lists instead of tuples."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _converted(value: Any, hint: Any, key: str, kinds: Mapping[Any, Kinds]) -> Any:
    """The value as the annotation `hint` wants it, or ValueError."""
    if hint in kinds:
        return _of_kind(value, kinds[hint], key, kinds)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, key, kinds)  # type: ignore[arg-type]  # a class: annotations are not instances
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # only ever "X | None"
        return None if value is None else _converted(value, next(a for a in inner if a is not types.NoneType), key, kinds)
    if origin in (tuple, Sequence):
        if not isinstance(value, list):
            raise ValueError(f"{key} is {shown(value)}, expected a list")
        items = [_converted(item, inner[0], _joined(key, index), kinds) for index, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin is dict and inner[1] is not Any:
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} is {shown(value)}, expected a mapping of names to values")
        return {str(name): _converted(item, inner[1], _joined(key, name), kinds) for name, item in value.items()}
    return _scalar(value, hint, key)


def _of_kind(value: Any, classes: Kinds, key: str, kinds: Mapping[Any, Kinds]) -> Any:
    if not isinstance(value, Mapping) or value.get("kind") not in classes:
        got = value.get("kind") if isinstance(value, Mapping) else value
        raise ValueError(f"{_joined(key, 'kind')} is {shown(got)}, expected one of {', '.join(classes)}")
    return build(classes[value["kind"]], {name: field for name, field in value.items() if name != "kind"}, key, kinds)


def _scalar(value: Any, hint: Any, key: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int and number and math.isfinite(value) and value == value // 1:
        return int(value)
    if hint is float and number and abs(value) < 1e300:
        return float(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    if hint not in (int, float, bool, str):  # a mapping that the caller checks itself
        return value
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]
    raise ValueError(f"{key} is {shown(value)}, expected {expected}")


def _joined(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)
