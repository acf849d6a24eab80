"""What every command that runs a model is asked: which model, how its stages are sampled, and on what machine."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade.classes import Vocabulary
from cascade.cli.arguments import SAMPLING_OPTIONS, per_stage
from cascade.cli.progress import on_terminal, say, silence_libraries
from cascade.folder import Manifest
from cascade.models import resolve

if TYPE_CHECKING:
    from cascade.pipeline import CascadePipeline
    from cascade.stage_sampling import StageSampling

_MACHINE = ("batch_size", "device", "dtype")


@dataclass(frozen=True)
class Request:
    """A checked request to a model: all that can be known before torch is imported.

    model: As it was typed.
    folder: Of the model.
    manifest: What the model is.
    size: Side of the pictures that are asked for.
    settings: Of the stages, as arguments of the cascade's call.
    batch_size: Pictures in a network at once; None = the device's default.
    device: Name; None = an accelerator if there is one.
    dtype: Name of the networks' number type; None = float32.
    options: The options above as they were typed, so that a picture can say how it was made.
    """

    model: str
    folder: Path
    manifest: Manifest
    size: int
    settings: Mapping[str, Any]
    batch_size: int | None
    device: str | None
    dtype: str | None
    options: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, args: Namespace, size: int | None = None, to_the_end: bool = False) -> Request:
        """Check the options that `arguments.add_model_options` adds.

        Args:
            args: The command line.
            size: Side of the pictures; None = the model's default, or with `to_the_end` that of its last stage.

        Raises:
            ValueError: if there is no such model, or it can't do what is asked.
        """
        folder = resolve(args.model)
        manifest = Manifest.read(folder)
        running = manifest.up_to(size or (not to_the_end and manifest.default_size) or manifest.stages[-1].size)
        settings = {}
        for key, option in SAMPLING_OPTIONS.items():
            known, run = ([s.name for s in m.stages if s.low_res_size or not option.refining] for m in (manifest, running))
            settings[key] = per_stage(option.flag, getattr(args, key), option.kind, known, run)
        given = {option.flag: getattr(args, key) for key, option in SAMPLING_OPTIONS.items()}
        given = {"--size": size} | given | {f"--{name.replace('_', '-')}": getattr(args, name) for name in _MACHINE}
        options = tuple((flag, str(value)) for flag, value in given.items() if value is not None)
        machine = {name: getattr(args, name) for name in _MACHINE}
        return cls(args.model, folder, manifest, running.stages[-1].size, settings, options=options, **machine)

    @property
    def classes(self) -> Vocabulary | None:
        return self.manifest.classes

    @property
    def stage_names(self) -> list[str]:
        """The stages that run."""
        return [stage.name for stage in self.manifest.up_to(self.size).stages]

    def label(self, query: str) -> int:
        """Index of the class that a person means."""
        if self.classes is not None:
            return self.classes.index(query)
        if not query.isdecimal():
            raise ValueError(f"the classes of {self.manifest.name!r} have no names; give --class an index instead of {query!r}")
        return int(query)

    def query(self, label: int) -> str:
        """What to give as --class for a class: its name where that means no other class."""
        if self.classes is None:
            return str(label)
        name = self.classes.names[label]
        return name if name in self.classes and self.classes.index(name) == label else str(label)

    def command(self, words: Sequence[str], size: int | None = None) -> str:
        """The command line that begins with `words` and has the options of this request, its --size replaced by `size`."""
        options = dict(self.options) if size is None else {"--size": str(size)} | dict(self.options) | {"--size": str(size)}
        return shlex.join([*words, *(word for option in options.items() for word in option), "--model", self.model])

    def load(self) -> tuple[CascadePipeline, dict[str, StageSampling]]:
        """The stages that run, on the device that is asked for, with bars where a person sees them; and how they are sampled.

        Raises:
            ValueError: if there is no such device, or the model is incomplete, damaged, or can't be sampled so.
        """
        from cascade.devices import find_device
        from cascade.pipeline import CascadePipeline

        device = find_device(self.device)
        silence_libraries()
        cascade = CascadePipeline.from_pretrained(self.folder, dtype=self.dtype, device=device, size=self.size)
        cascade.set_progress_bar_config(disable=not on_terminal(), leave=False)
        return cascade, cascade.sampling(**self.settings_of(cascade))

    def settings_of(self, cascade: CascadePipeline) -> dict[str, Any]:
        """The settings, without values for stages that were not loaded."""
        return {
            key: {name: one for name, one in value.items() if name in cascade.stages} if isinstance(value, dict) else value
            for key, value in self.settings.items()
        }


class StageLines:
    """A callback for the cascade's call that says, where no bar is seen, which stage is at work on how many pictures.

    Args:
        cascade: Which is called.
        what: What is made, as "images 1 to 8 of 20".
    """

    def __init__(self, cascade: CascadePipeline, what: str) -> None:
        self.names = {id(stage): f"{name}, {cascade.sizes[name]} px" for name, stage in cascade.stages.items()}
        self.what, self.current = what, 0

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if id(pipeline) != self.current:
            self.current = id(pipeline)
            if not on_terminal():
                say(f"{self.names.get(self.current, 'stage')}: {self.what}")
        return {}


def chunks(count: int, batch_size: int | None, at_once: int = 32) -> list[range]:
    """Places of `count` pictures in whole batches of about `at_once`, after each of which files are written."""
    size = (batch_size or 1) * max(1, at_once // (batch_size or 1))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
