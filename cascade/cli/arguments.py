"""What the commands' arguments have in common: the parser, types of values, and values given once or per stage."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError, HelpFormatter, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from cascade.runs.plan import MOST_PROCESSES
from cascade.schedulers import SCHEDULERS

DEFAULT_MODEL = "emoji"
RUN_OPTIONS = ("batch_size", "processes", "threads")
"""Of a sampling run, by the names of their arguments."""

_Value = TypeVar("_Value")


class Parser(ArgumentParser):
    """A parser whose errors are one sentence, raised as ValueError; the `epilog` that it is made with keeps its lines."""

    def __init__(self, epilog: str | None = None, **options: Any) -> None:
        formatter = HelpFormatter if epilog is None else RawDescriptionHelpFormatter
        super().__init__(epilog=epilog, formatter_class=formatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see `{self.prog} --help`")


def parsed(parser: ArgumentParser, argv: Sequence[str] | None) -> Namespace:
    """The arguments in any order, with subcommands in argparse's own; None = those of the process. Mistakes raise ValueError."""
    return parser.parse_intermixed_args(argv) if parser._subparsers is None else parser.parse_args(argv)


def _number(kind: Callable[[str], _Value], fits: Callable[[_Value], bool], expected: str) -> Callable[[str], _Value]:
    """The type of an option whose value is such a number."""

    def number(text: str) -> _Value:
        with suppress(ValueError):
            if fits(value := kind(text)):
                return value
        raise ArgumentTypeError(f"{text!r} is not {expected}")

    return number


MOST = 10**9
positive = _number(int, lambda value: 1 <= value <= MOST, f"a whole number of at least 1 and at most {MOST:,}")
natural = _number(int, lambda value: 0 <= value <= MOST, f"a whole number of at least 0 and at most {MOST:,}")
few = _number(int, lambda value: 1 <= value <= 1024, "a whole number of at least 1 and at most 1,024")
seed = _number(int, lambda value: 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1")
scale = _number(float, lambda value: 0 <= value < float("inf"), "a number of at least 0, 1 = no guidance")
level = _number(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
seconds = _number(float, lambda value: 0 <= value < 3600, "a number of seconds from 0 to 3600")
port = _number(int, lambda value: 0 <= value < 65536, "a port, a whole number from 0 to 65535")


def duration(text: str) -> float:
    """Seconds of a time as 90s, 9m, 2h or 1h30m."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    seconds = 0 if found is None else sum(int(n or 0) * unit for n, unit in zip(found.groups(), (3600, 60, 1), strict=True))
    if not seconds:
        raise ArgumentTypeError(f"{text!r} is not a time such as 90s, 9m, 2h or 1h30m")
    return float(seconds)


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
    low, _, high = text.partition(":")
    with suppress(ValueError):
        if 0 <= float(low) <= float(high):
            return float(low), float(high)
    raise ArgumentTypeError(f"{text!r} is not LOW:HIGH, two sigmas of which the first is not the larger, as 0.3:5")


@dataclass(frozen=True)
class Option:
    """How a field of `StageSampling` is given: `kind` makes a value of a text, `refining` if only refining stages have it."""

    flag: str
    kind: Callable[[str], Any]
    metavar: str
    help: str
    refining: bool = False


SAMPLING_OPTIONS = {
    "num_inference_steps": Option("--steps", positive, "N", "sampling steps"),
    "guidance_scale": Option("--guidance-scale", scale, "S", "1 = no guidance, higher = more typical of the class"),
    "guidance_interval": Option("--guidance-interval", interval, "LOW:HIGH", "EDM sigmas between which it is guided"),
    "aug_level": Option("--aug-level", level, "A", "noise on the picture that a refining stage starts from, 0 to 1", True),
    "consistency": Option(
        "--consistency", switch, "on|off", "whether a refining stage's picture must average to the one that it starts from", True
    ),
    "tile_size": Option(
        "--tile-size", positive, "PX", "side of the tiles that a refining stage sees at once; smaller needs less memory", True
    ),
    "scheduler": Option("--scheduler", scheduler, "NAME", ", ".join(SCHEDULERS)),
}
"""By the names of the fields of `StageSampling`, in the order in which a command line is written."""


def add_commands(parser: ArgumentParser, *commands: tuple[str, str, Callable[[ArgumentParser], None], Any]) -> None:
    """Commands within a command, each by its name, its help, what adds its options, and what runs it: `args.action(args)`."""
    inner = parser.add_subparsers(metavar="WHAT", required=True)
    for name, text, options, action in commands:
        command = inner.add_parser(name, help=text, description=text)
        options(command)
        command.set_defaults(action=action)


def add_model_options(parser: ArgumentParser) -> None:
    """Options of every command that runs a model."""
    text = "a shipped or installed model, a folder, or an id on the Hugging Face Hub (default emoji)"
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="M", help=text)
    add_sampling_options(parser)


def add_sampling_options(parser: ArgumentParser) -> None:
    """Options of sampling and of the machine, for commands that name their model otherwise."""
    text = "Each takes one value (8), one per stage (20,8), or named ones (base=20,sr256=8)."
    sampling = parser.add_argument_group("sampling", text)
    for name, option in SAMPLING_OPTIONS.items():
        text = f"{option.help} (default: the model's own)"
        sampling.add_argument(option.flag, dest=name, metavar=option.metavar, help=text)
    add_machine_options(parser)


def add_machine_options(parser: ArgumentParser) -> None:
    """Where and how a model runs."""
    machine = parser.add_argument_group("machine")
    text = "images in the network at once (default: 1 on a CPU, where each picture then never depends on the others, else 8)"
    machine.add_argument("--batch-size", type=positive, metavar="N", help=text)
    machine.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps ... (default: an accelerator if there is one)")
    dtypes = ("float32", "mixed", "bfloat16", "float16")
    text = "number type of the networks; mixed = float32 whose convolutions multiply in bfloat16 (default: mixed on a CPU that is"
    text += " made for it, for stages whose pictures hardly change by it, else float32)"
    machine.add_argument("--dtype", choices=dtypes, help=text)


def add_run_options(parser: ArgumentParser) -> None:
    """Options of sampling, of the machine, and of how a sampling run is spread over it."""
    add_sampling_options(parser)
    group = parser.add_argument_group("processes", "Under torchrun or accelerate, their processes share the run.")
    text = f"started by this command (default: one for each core and at most {MOST_PROCESSES} on a CPU, else one)"
    group.add_argument("--processes", type=few, metavar="N", help=text)
    text = "of each process on a CPU; images differ in their last bits with it, so a run keeps its own (default 1)"
    group.add_argument("--threads", type=few, default=1, metavar="N", help=text)


def add_place(parser: ArgumentParser, default: int) -> None:
    """Where something is served, for commands that people reach by a browser; `default` is the port."""
    add = parser.add_argument
    text = "where to listen; 0.0.0.0 = for other machines too (default 127.0.0.1, this machine alone)"
    add("--host", default="127.0.0.1", metavar="ADDRESS", help=text)
    add("--port", type=port, default=default, metavar="N", help=f"0 = a free one (default {default})")


def given(args: Namespace, *names: str) -> dict[str, Any]:
    """Arguments of a function that options have by the same names."""
    return {name: getattr(args, name) for name in names}


def add_resamples(parser: ArgumentParser) -> None:
    """How intervals are made, for commands that measure."""
    text = "redrawn sets behind the 95 %% intervals of means; 0 = no intervals and no extrapolation (default 100)"
    parser.add_argument("--resamples", type=natural, default=100, metavar="N", help=text)


def per_stage(
    option: str, text: str | None, kind: Callable[[str], _Value], stages: Sequence[str], running: Sequence[str]
) -> _Value | dict[str, _Value] | None:
    """What an option says: one value for all stages ("8"), or one for each that it names ("20,8" in order, "base=20,sr256=8").

    `stages` are those that the option is about, `running` those of them that run, the first ones: a list may leave out the
    others. Raises ValueError, which names the option, for a wrong value, name or number of values.
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
