"""The `cascade` command and its subcommands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cascade.cli import benchmark, classes, convert, data, evaluate, generate, inspect, sample, search_schedule, train, upscale
from cascade.cli.arguments import Parser, parsed, version
from cascade.cli.errors import guarded

COMMANDS = (generate, classes, upscale, inspect, data, train, sample, evaluate, benchmark, convert, search_schedule)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cascade` with these arguments, None = those of the process; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((command for command in COMMANDS if words and words[0] == command.NAME), None)
    if command is None:
        return guarded("cascade", lambda: _overview(words))

    def action() -> None:
        parser = Parser(prog=f"cascade {command.NAME}", description=command.HELP)
        command.add_arguments(parser)
        command.run(parsed(parser, words[1:]))

    return guarded(f"cascade {command.NAME}", action)


def _overview(words: Sequence[str]) -> None:
    """Help and version of `cascade` itself; anything else that begins with no command raises ValueError."""
    parser = Parser(prog="cascade", description="Cascaded image generation: make, refine, inspect and train.")
    parser.add_argument("--version", action="version", version=f"cascade-diffusion {version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        commands.add_parser(command.NAME, help=command.HELP)
    parser.parse_args(words)
