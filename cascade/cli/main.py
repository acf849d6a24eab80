"""The `cascade` command and its subcommands."""

from __future__ import annotations

from collections.abc import Sequence

from cascade.cli import classes, data, generate, inspect, train, upscale
from cascade.cli.arguments import Parser, parsed, version
from cascade.cli.errors import guarded

COMMANDS = (generate, classes, upscale, inspect, data, train)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cascade` with these arguments, None = those of the process; returns the exit code."""
    return guarded("cascade", lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="cascade", description="Cascaded image generation: make, refine, inspect and train.")
    parser.add_argument("--version", action="version", version=f"cascade-diffusion {version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    args = parsed(parser, argv)
    args.run(args)
