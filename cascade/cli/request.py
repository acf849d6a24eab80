"""What every command that runs a model is asked: which model, how its stages are sampled, and on what machine."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade.classes import Vocabulary
from cascade.cli.arguments import SAMPLING_OPTIONS, per_stage
from cascade.cli.progress import on_terminal, silence_libraries
from cascade.cli.quick_imports import import_diffusers
from cascade.cli.terminal import say
from cascade.folder import Manifest
from cascade.models import resolve
from cascade.png import Origin

if TYPE_CHECKING:
    from cascade.pipeline import CascadePipeline
    from cascade.stage_sampling import StageSampling


@dataclass(frozen=True)
class Request:
    """A checked request to a model: all that can be known before torch is imported.

    model: As it was typed.
    size: Side of the pictures that are asked for.
    settings: Of the stages, as arguments of the cascade's call.
    options: As they were typed, so that a picture can say how it was made.
    """

    model: str
    folder: Path
    manifest: Manifest
    size: int
    settings: Mapping[str, Any]
    device: str | None
    dtype: str | None
    options: Mapping[str, str]

    @classmethod
    def of(cls, args: Namespace, size: int | None = None, to_the_end: bool = False) -> Request:
        """Check the options that `add_model_options` adds, for pictures of side `size`; ValueError if the model can't do that.

        None = the model's default, or with `to_the_end` the size of its last stage.
        """
        folder = resolve(args.model)
        manifest = Manifest.read(folder)
        running = manifest.up_to(size or (not to_the_end and manifest.default_size) or manifest.stages[-1].size)
        settings = {}
        for key, option in SAMPLING_OPTIONS.items():
            known, run = ([s.name for s in m.stages if s.low_res_size or not option.refining] for m in (manifest, running))
            settings[key] = per_stage(option.flag, getattr(args, key), option.kind, known, run)
        typed = {"--size": size} | {option.flag: getattr(args, key) for key, option in SAMPLING_OPTIONS.items()}
        typed |= {"--batch-size": args.batch_size, "--device": args.device, "--dtype": args.dtype}
        options = {flag: str(value) for flag, value in typed.items() if value is not None}
        return cls(args.model, folder, manifest, running.stages[-1].size, settings, args.device, args.dtype, options)

    @property
    def classes(self) -> Vocabulary | None:
        return self.manifest.classes

    @property
    def sizes(self) -> dict[str, int]:
        """Side of the pictures of each stage that runs, by its name."""
        return {stage.name: stage.size for stage in self.manifest.up_to(self.size).stages}

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

    def origin(
        self, words: list[str], labels: list[int], seeds: tuple[int, ...], settings: Any, size: int | None = None
    ) -> Origin:
        """What a picture says of itself, by a command line of `words` and this request's options, with `size` as its --size."""
        own = {} if size is None else {"--size": str(size)}
        options = own | dict(self.options) | own
        command = shlex.join([*words, *(word for option in options.items() for word in option), "--model", self.model])
        names = () if self.classes is None else tuple(self.classes.names[label] for label in labels)
        return Origin(command, self.manifest.name, names, tuple(labels), seeds, settings)

    def load(self) -> tuple[CascadePipeline, dict[str, StageSampling]]:
        """The stages that run, on the device that is asked for, with bars where a person sees them; and how they are sampled."""
        import_diffusers()
        from cascade.devices import find_device
        from cascade.pipeline import CascadePipeline

        device = find_device(self.device)
        silence_libraries()
        cascade = CascadePipeline.from_pretrained(self.folder, dtype=self.dtype, device=device, size=self.size)
        cascade.set_progress_bar_config(disable=not on_terminal(), leave=False)
        settings = dict(self.settings)
        for key, value in settings.items():
            if isinstance(value, dict):  # without those of stages that were not loaded
                settings[key] = {name: one for name, one in value.items() if name in cascade.stages}
        return cascade, cascade.sampling(**settings)


class StageLines:
    """A callback for a call of `cascade` that says, where no bar is seen, which stage is at work on what ("images 1 to 8")."""

    def __init__(self, cascade: CascadePipeline, what: str) -> None:
        self.names = {id(stage): f"{name}, {cascade.sizes[name]} px" for name, stage in cascade.stages.items()}
        self.what, self.current = what, 0

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if id(pipeline) != self.current:
            self.current = id(pipeline)
            if not on_terminal():
                say(f"{self.names.get(self.current, 'stage')}: {self.what}")
        return {}


def chunks(count: int, batch_size: int | None) -> list[range]:
    """Places of `count` pictures in whole batches of about 32, after each of which files are written."""
    size = (batch_size or 1) * max(1, 32 // (batch_size or 1))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
