"""diffusers imported without what making pictures doesn't need: torch's compiler, scipy.stats, its transformers and offloading.

They are two thirds of its import. Each is put off until something is asked of it that can't be answered without, so that whoever
does need it (a diffusers pipeline as the base, a scheduler with beta sigmas) finds it as ever. For processes of the command line,
which compile nothing; a library leaves the imports of its users alone.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

PIPELINES = "diffusers.pipelines.pipeline_utils"


def import_diffusers() -> None:
    """Import what all pipelines are made of, quickly; nothing where it is imported already."""
    if PIPELINES in sys.modules:
        return
    import torch

    compiler = {"allow_in_graph": _as_it_is, "disable": _as_it_is, "eval_frame": SimpleNamespace(OptimizedModule=_Compiled)}
    offload = {"_get_group_onload_device": _not_offloaded, "_is_group_offload_enabled": lambda module: False}
    put_off = (
        _Deferred("torch._dynamo", compiler, torch),
        _Deferred("scipy.stats"),
        _Deferred("diffusers.hooks.group_offloading", offload, is_package=False),
    )
    try:
        with ExitStack() as stack:
            for module in put_off:
                stack.enter_context(module.in_place())
            stack.enter_context(_distributions_on_demand())
            stack.enter_context(_autoencoder_on_demand())
            import_module(PIPELINES)
    except (ImportError, RuntimeError):  # other versions of the libraries ask for more: they are imported as they want it
        for module in put_off:
            module.give_way()


class _Deferred(ModuleType):
    """Stands for a module until something is asked of it that is not among `answers`; then the module itself takes its place."""

    def __init__(
        self, name: str, answers: Mapping[str, Any] | None = None, parent: ModuleType | None = None, is_package: bool = True
    ) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self._parent, self._is_package = parent, is_package
        vars(self).update(answers or {})

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Takes the module's place, unless it is imported; within it, it passes for a package without submodules."""
        if self.__name__ in sys.modules:
            yield
            return
        sys.modules[self.__name__] = self
        if self._parent is not None:
            setattr(self._parent, self.__name__.rpartition(".")[2], self)
        self.__path__: list[str] = []
        try:
            yield
        finally:
            del self.__path__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and not (name == "__path__" and self._is_package):  # of whoever looks through all modules
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.give_way()
        return getattr(import_module(self.__name__), name)

    def give_way(self) -> None:
        """Leaves the place to the module itself, which the next import finds."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


class _Compiled:
    """Of the networks that torch.compile wraps there are none before torch's compiler is imported."""


def _as_it_is(function: Any = None, *_: Any, **__: Any) -> Any:
    """Marks of functions for the compiler, which nobody looks at who compiles nothing."""
    return _as_it_is if function is None else function


def _not_offloaded(module: Any) -> Any:
    raise ValueError("no group of layers is offloaded before diffusers' offloading is imported")


class _OfAutoencoders(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, import_module("diffusers.models").AutoencoderKL)


class _AutoencoderKL(metaclass=_OfAutoencoders):
    """What `isinstance` takes for diffusers' class, all that its pipelines use it for, without importing it."""


@contextmanager
def _autoencoder_on_demand() -> Iterator[None]:
    """Has diffusers' autoencoder, and with it all of its networks, imported only by whoever makes one."""
    models: Any = import_module("diffusers.models")
    models.AutoencoderKL = _AutoencoderKL
    try:
        yield
    finally:
        del models.AutoencoderKL


@contextmanager
def _distributions_on_demand() -> Iterator[None]:
    """Has the table of what is installed, for which every package's list of files is read, made only where one is looked up."""
    original = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = lambda: _Distributions(original)
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = original


class _Distributions(Mapping[str, list[str]]):
    def __init__(self, read: Any) -> None:
        self.read = read

    @cached_property
    def found(self) -> Mapping[str, list[str]]:
        found: Mapping[str, list[str]] = self.read()
        return found

    def __getitem__(self, name: str) -> list[str]:
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)
