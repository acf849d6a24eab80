"""The `cascade` command and its subcommands."""

from __future__ import annotations

import sys
from argparse import Action
from collections.abc import Sequence
from typing import Any, NoReturn

import cascade
from cascade.cli import (
    benchmark,
    classes,
    compose,
    convert,
    data,
    demo,
    evaluate,
    export,
    fit,
    generate,
    inspect,
    models,
    sample,
    search_schedule,
    study,
    train,
    upscale,
)
from cascade.cli.arguments import Parser, parsed
from cascade.cli.completion import SHELLS, script
from cascade.cli.errors import guarded
from cascade.cli.program import leave
from cascade.cli.terminal import put_raw

COMMANDS = (
    generate, demo, models, classes, upscale, inspect, data, fit, train, compose, sample, evaluate, study, benchmark, convert,
    export, search_schedule,
)  # fmt: skip


def program() -> NoReturn:
    """`cascade` with the arguments of this process, which ends with it."""
    leave(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cascade` with these arguments, None = those of the process; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = _named(words[:1], COMMANDS)
    if command is None:
        return guarded("cascade", lambda: _overview(words))
    inner = _named(words[1:2], getattr(command, "SUBCOMMANDS", ()))
    names = [command.NAME] if inner is None else [command.NAME, inner.NAME]
    chosen, program = inner or command, " ".join(["cascade", *names])

    def action() -> None:
        parser = Parser(prog=program, description=chosen.HELP, epilog=getattr(chosen, "EPILOG", None))
        chosen.add_arguments(parser)
        chosen.run(parsed(parser, words[len(names) :]))

    return guarded(program, action)


def _named(word: Sequence[str], commands: Sequence[Any]) -> Any:
    """The command of this name; None where there is none, or no word."""
    return next((command for command in commands if [*word] == [command.NAME]), None)


def _overview(words: Sequence[str]) -> None:
    """Help and version of `cascade` itself; anything else that begins with no command raises ValueError."""
    parser = Parser(prog="cascade", description="Cascaded image generation: make, refine, inspect and train.")
    parser.add_argument("--version", action="version", version=f"cascade-diffusion {cascade.__version__}")
    text = "print what this shell needs to complete `cascade` and `generate`, and leave"
    parser.add_argument("--print-completion", action=_PrintCompletion, choices=SHELLS, help=text)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        commands.add_parser(command.NAME, help=command.HELP)
    parser.parse_args(words)


class _PrintCompletion(Action):
    """Prints the script for a shell, and ends the program."""

    def __call__(self, parser: Any, namespace: Any, shell: Any, option: str | None = None) -> None:
        put_raw(script(shell, generate, COMMANDS))
        parser.exit()
