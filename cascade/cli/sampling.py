"""What `generate` and `cascade upscale` share: a model that is known before it is loaded, its settings, and its progress."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade.classes import Vocabulary
from cascade.cli.arguments import level, per_stage, positive, scale, scheduler, switch
from cascade.cli.progress import on_terminal, say, silence_libraries
from cascade.models import Manifest, StageEntry, resolve
from cascade.schedulers import scheduler_class

if TYPE_CHECKING:
    import torch

    from cascade.pipeline import CascadePipeline

_AGAIN = ("size", "steps", "guidance_scale", "aug_level", "consistency", "scheduler", "batch_size", "device", "dtype")
"""Options that a picture depends on beside model, class and seed."""
_ALSO = ("guidance_interval", "tile_size")
"""Settings of stages that it depends on too, which are no options."""


@dataclass(frozen=True)
class Request:
    """A checked request to a model: all that can be known before torch is imported.

    args: The command line.
    folder: Of the model.
    manifest: What the model is.
    size: Side of the pictures that are asked for.
    settings: Arguments of the cascade's call, schedulers still by their short names.
    """

    args: Namespace
    folder: Path
    manifest: Manifest
    size: int
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, args: Namespace, to_the_end: bool = False) -> Request:
        """Check the options that `arguments.add_model_options` adds, and `args.size`.

        Where no size is asked for it is the model's default, or with `to_the_end` that of its last stage.

        Raises:
            ValueError: if there is no such model, or it can't do what is asked.
        """
        folder = resolve(args.model)
        manifest = Manifest.read(folder)
        sizes = [stage.size for stage in manifest.stages]
        if args.size is not None and args.size not in sizes:
            known = ", ".join(map(str, sizes))
            raise ValueError(
                f"--size is {args.size}, but the stages of {manifest.name!r} make {known} px pictures; choose one of these"
            )
        size = args.size or (not to_the_end and manifest.default_size) or sizes[-1]
        names = [stage.name for stage in manifest.stages]
        refining = [stage.name for stage in manifest.stages if stage.low_res_size]
        running = names[: sizes.index(size) + 1]
        of_all, of_refining = (names, running), (refining, [name for name in running if name in refining])
        settings: dict[str, Any] = {
            "num_inference_steps": per_stage("--steps", args.steps, positive, *of_all),
            "guidance_scale": per_stage("--guidance-scale", args.guidance_scale, scale, *of_all),
            "aug_level": per_stage("--aug-level", args.aug_level, level, *of_refining),
            "consistency": per_stage("--consistency", args.consistency, switch, *of_refining),
            "scheduler": per_stage("--scheduler", args.scheduler, scheduler, *of_all),
        }
        return cls(args, folder, manifest, size, settings)

    @property
    def classes(self) -> Vocabulary | None:
        return self.manifest.classes

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
        try:
            return self.classes.names[label] if self.classes.index(self.classes.names[label]) == label else str(label)
        except ValueError:
            return str(label)

    def command(self, words: Sequence[str], size: int | None = None) -> str:
        """The command line that begins with `words` and has the options that this request has, its --size replaced by `size`."""
        given = vars(self.args) | ({} if size is None else {"size": size})
        options = [(f"--{name.replace('_', '-')}", str(given[name])) for name in _AGAIN if given[name] is not None]
        return shlex.join([*words, *(word for option in options for word in option), "--model", str(self.args.model)])

    def arguments(self) -> dict[str, Any]:
        """The settings as arguments of the cascade's call, with batch size."""
        chosen = self.settings["scheduler"]
        if isinstance(chosen, dict):
            kind: Any = {stage: scheduler_class(name) for stage, name in chosen.items()}
        else:
            kind = None if chosen is None else scheduler_class(chosen)
        return {**self.settings, "scheduler": kind, "batch_size": self.args.batch_size}

    def described(self, cascade: CascadePipeline, stages: Sequence[str]) -> dict[str, Any]:
        """Every setting that the result of these stages depends on, defaults written out, as plain values."""
        from cascade.call import settings_of

        arguments = self.arguments()
        chosen = arguments.pop("scheduler")
        arguments.pop("batch_size")
        given = settings_of(cascade.stages, arguments)
        described: dict[str, Any] = {}
        for name in stages:
            stage = cascade.stages[name]
            defaults = {key: stage.config[key] for key in (*arguments, *_ALSO) if stage.config.get(key) is not None}
            kind = chosen.get(name) if isinstance(chosen, dict) else chosen
            described[name] = {**defaults, **given[name]}
            if getattr(stage, "scheduler", None) is not None:
                described[name]["scheduler"] = (kind or type(stage.scheduler)).__name__
        device = next(iter(cascade.stages.values())).device
        return {
            "stages": described,
            "dtype": self.args.dtype or "float32",
            "device": device.type,
            "batch_size": self.args.batch_size,
        }


def load(request: Request) -> CascadePipeline:
    """The model on the device that is asked for, its bars where a person sees them.

    Raises:
        ValueError: if there is no such device, or the model is incomplete or damaged.
    """
    import torch

    from cascade.pipeline import CascadePipeline

    device = _device(request.args.device)
    silence_libraries()
    cascade = CascadePipeline.from_pretrained(
        request.folder, dtype=getattr(torch, request.args.dtype or "float32"), device=device
    )
    cascade.set_progress_bar_config(disable=not on_terminal(), leave=False)
    return cascade


def _device(name: str | None) -> torch.device:
    """The device of this name; None = an accelerator if there is one."""
    import torch

    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if here is not None else 0
    if name is None:
        return here or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device is {name!r}, expected cpu, cuda, cuda:1, mps or the like") from None
    if device.type != "cpu" and (here is None or device.type != here.type or (device.index or 0) >= count):
        known = ", ".join(["cpu", *(f"{here.type}:{index}" for index in range(count) if here is not None)])
        raise ValueError(f"--device is {name!r}, but this machine has {known} only")
    return device


class StageLines:
    """A callback for the cascade's call that says, where no bar is seen, which stage is at work on how many pictures.

    Args:
        cascade: Which is called.
        entries: Its stages.
        what: What is made, as "images 1 to 8 of 20".
    """

    def __init__(self, cascade: CascadePipeline, entries: Sequence[StageEntry], what: str) -> None:
        self.names = {id(cascade.stages[entry.name]): f"{entry.name}, {entry.size} px" for entry in entries}
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
