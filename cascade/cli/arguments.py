"""What the commands' arguments have in common: the parser, types of values, and values given once or per stage."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from cascade.runs.plan import MOST_PROCESSES
from cascade.schedulers import SCHEDULERS

DEFAULT_MODEL = "emoji"
RESAMPLES = 100
DTYPES = ("float32", "bfloat16", "float16")
RUN_OPTIONS = ("batch_size", "processes", "threads")
"""Of a sampling run, by the names of their arguments."""

_Value = TypeVar("_Value")


class Parser(ArgumentParser):
    """A parser whose errors are one sentence, raised as ValueError."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, allow_abbrev=False, **options)  # type: ignore[arg-type,misc]  # what argparse takes

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see `{self.prog} --help`")


def parsed(parser: ArgumentParser, argv: Sequence[str] | None) -> Namespace:
    """The arguments, options and others in any order; None = those of the process.

    `--help` and `--version` print and leave by SystemExit(0), mistakes raise ValueError. A parser with subcommands takes them in
    argparse's own order, for it can't do otherwise.
    """
    if parser._subparsers is not None:
        return parser.parse_args(argv)
    return parser.parse_intermixed_args(argv)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _number(int, text, lambda value: value >= 1, "a whole number of at least 1")


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return _number(int, text, lambda value: value >= 0, "a whole number of at least 0")


def seed(text: str) -> int:
    """A seed of torch's generators."""
    return _number(int, text, lambda value: 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1")


def scale(text: str) -> float:
    """A guidance scale."""
    return _number(float, text, lambda value: 0 <= value < float("inf"), "a number of at least 0, 1 = no guidance")


def level(text: str) -> float:
    """An augmentation level."""
    return _number(float, text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def switch(text: str) -> bool:
    """On or off."""
    if text not in ("on", "off"):
        raise ArgumentTypeError(f"{text!r} is neither on nor off")
    return text == "on"


def scheduler(text: str) -> str:
    """A short name of a scheduler."""
    if text not in SCHEDULERS:
        raise ArgumentTypeError(f"{text!r} is not one of {', '.join(SCHEDULERS)}")
    return text


def interval(text: str) -> tuple[float, float]:
    """A range of noise, as "0.3:5": lowest and highest EDM sigma."""
    low, colon, high = text.partition(":")
    try:
        if colon and 0 <= float(low) <= float(high):
            return float(low), float(high)
    except ValueError:
        pass
    raise ArgumentTypeError(f"{text!r} is not LOW:HIGH, two sigmas of which the first is not the larger, as 0.3:5")


@dataclass(frozen=True)
class SamplingOption:
    """How a field of `StageSampling` is given on the command line.

    flag, metavar, help: Of the option.
    kind: Makes a value of its text.
    refining: Whether only stages that refine pictures have it.
    """

    flag: str
    kind: Callable[[str], Any]
    metavar: str
    help: str
    refining: bool = False


SAMPLING_OPTIONS = {
    "num_inference_steps": SamplingOption("--steps", positive, "N", "sampling steps"),
    "guidance_scale": SamplingOption("--guidance-scale", scale, "S", "1 = no guidance, higher = more typical of the class"),
    "guidance_interval": SamplingOption("--guidance-interval", interval, "LOW:HIGH", "EDM sigmas between which it is guided"),
    "aug_level": SamplingOption(
        "--aug-level", level, "A", "noise on the picture that a refining stage starts from, 0 to 1", refining=True
    ),
    "consistency": SamplingOption(
        "--consistency",
        switch,
        "on|off",
        "whether a refining stage's picture must average to the one that it starts from",
        refining=True,
    ),
    "tile_size": SamplingOption(
        "--tile-size",
        positive,
        "PX",
        "side of the tiles that a refining stage sees at once; smaller needs less memory",
        refining=True,
    ),
    "scheduler": SamplingOption("--scheduler", scheduler, "NAME", ", ".join(SCHEDULERS)),
}
"""By the names of the fields of `StageSampling`, in the order in which a command line is written."""


def _number(kind: Callable[[str], _Value], text: str, fits: Callable[[_Value], bool], expected: str) -> _Value:
    value: _Value | None = None
    with suppress(ValueError):
        value = kind(text)
    if value is None or not fits(value):
        raise ArgumentTypeError(f"{text!r} is not {expected}")
    return value


def add_model_options(parser: ArgumentParser) -> None:
    """Options of every command that runs a model."""
    add = parser.add_argument
    text = "a shipped model, a folder, or an id on the Hugging Face Hub (default emoji)"
    add("--model", default=DEFAULT_MODEL, metavar="M", help=text)
    add_sampling_options(parser)


def add_sampling_options(parser: ArgumentParser) -> None:
    """Options of sampling and of the machine, for commands that name their model otherwise."""
    sampling = parser.add_argument_group(
        "sampling", "Each takes one value (8), one per stage (20,8), or named ones (base=20,sr256=8)."
    )
    for name, option in SAMPLING_OPTIONS.items():
        text = f"{option.help} (default: the model's own)"
        sampling.add_argument(option.flag, dest=name, metavar=option.metavar, help=text)
    machine = parser.add_argument_group("machine")
    text = "images in the network at once (default: 1 on a CPU, where each picture then never depends on the others, else 8)"
    machine.add_argument("--batch-size", type=positive, metavar="N", help=text)
    machine.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps ... (default: an accelerator if there is one)")
    machine.add_argument("--dtype", choices=DTYPES, help="number type of the networks (default float32)")


def add_process_options(parser: ArgumentParser) -> None:
    """How a sampling run is spread over a machine."""
    group = parser.add_argument_group("processes", "Under torchrun or accelerate, their processes share the run.")
    text = f"started by this command (default: one for each core and at most {MOST_PROCESSES} on a CPU, else one)"
    group.add_argument("--processes", type=positive, metavar="N", help=text)
    text = "of each process on a CPU; images differ in their last bits with it, so a run keeps its own (default 1)"
    group.add_argument("--threads", type=positive, default=1, metavar="N", help=text)


def given(args: Namespace, *names: str) -> dict[str, Any]:
    """Arguments of a function that options have by the same names."""
    return {name: getattr(args, name) for name in names}


def add_resamples(parser: ArgumentParser) -> None:
    """How intervals are made, for commands that measure."""
    add = parser.add_argument
    text = f"bootstrap resamples behind each 95 %% interval; 0 = no intervals (default {RESAMPLES})"
    add("--resamples", type=natural, default=RESAMPLES, metavar="N", help=text)


def per_stage(
    option: str, text: str | None, kind: Callable[[str], _Value], stages: Sequence[str], running: Sequence[str]
) -> _Value | dict[str, _Value] | None:
    """What an option says: one value for all stages, or a value for each stage that it names.

    Args:
        option: Its name, for error messages.
        text: "8", "20,8" (one per stage, in order), "base=20,sr256=8" (any of them); None = not given.
        kind: Makes a value of a part of the text.
        stages: Names of the stages that the option is about.
        running: Those of them that run, the first ones. A list may leave out the others.

    Raises:
        ValueError: if a value, a name or the number of values is wrong.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    try:
        if len(parts) == 1 and "=" not in text:
            return kind(text)
        if "=" not in text:
            if not len(running) <= len(parts) <= len(stages):
                raise ArgumentTypeError(f"{text!r} has {len(parts)} values for {len(running)} stages ({', '.join(running)})")
            return {name: kind(part) for name, part in zip(stages, parts, strict=False)}
        pairs = [part.partition("=") for part in parts]
        for name, _, _ in pairs:
            if name not in stages:
                raise ArgumentTypeError(f"{text!r} names {name!r}, which is not one of the stages {', '.join(stages)}")
        return {name: kind(value) for name, _, value in pairs}
    except ArgumentTypeError as error:
        raise ValueError(f"argument {option}: {error}") from error
