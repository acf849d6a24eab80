"""What a shell completes after `generate` and `cascade`: a script, which shtab makes from their parsers."""

from __future__ import annotations

import re
from argparse import Action, ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

from cascade.cli.arguments import DEFAULT_MODEL, Parser

SHELLS = ("bash", "zsh", "fish")

_FILES = ("SOURCE", "IMAGES", "REFERENCE", "SAMPLES", "REAL", "MADE", "STAGE")
"""Arguments, by their metavars, that are paths though they may also be something else."""

_SAFE = re.compile(r"[\w.+-]+(/[\w.+-]+)*")
"""Words that are offered: none that a shell could take for more than a word."""


def script(shell: str, generate: ModuleType, commands: Sequence[ModuleType]) -> str:
    """The script for this shell, of `generate` and of `cascade` with its `commands`."""
    import shtab

    alone, whole = Parser(prog="generate"), Parser(prog="cascade")
    generate.add_arguments(alone)
    inner = whole.add_subparsers()
    for command in commands:
        command.add_arguments(inner.add_parser(command.NAME, help=command.HELP))
    words = _words(commands)
    for parser in (alone, whole):
        _add_offers(parser, words, shtab)
    return "\n".join(shtab.complete(parser, shell) for parser in (alone, whole))


def _words(commands: Sequence[ModuleType]) -> Mapping[str, list[str]]:
    """What is known by name, by the metavars of the arguments that take it."""
    from cascade import models, presets
    from cascade.folder import Manifest
    from cascade.measure.protocols import protocol_names
    from cascade.training.recipes import recipe_names

    known = [*models.folders(), *presets.names()]
    classes = Manifest.read(models.resolve(DEFAULT_MODEL)).classes
    inner = [one.NAME for command in commands for one in getattr(command, "SUBCOMMANDS", ())]
    return {
        "M": known,
        "MODEL": known,
        "MODEL_OR_STAGE_OR_PICTURE": known,
        "C": [] if classes is None else list(classes.names),
        "CONFIG": [*inner, *recipe_names()],
        "P": protocol_names(),
    }


def _add_offers(parser: ArgumentParser, words: Mapping[str, list[str]], shtab: Any) -> None:
    """Say what each argument takes, where its choices don't: names, files, folders."""
    for action in parser._actions:
        if isinstance(action.choices, Mapping):  # commands
            for inner in action.choices.values():
                _add_offers(inner, words, shtab)
        elif action.choices is None and action.nargs != 0 and (offer := _offer(action, words, shtab)):
            action.complete = offer  # type: ignore[attr-defined]  # where shtab looks for it


def _offer(action: Action, words: Mapping[str, list[str]], shtab: Any) -> Mapping[str, Any] | None:
    """What shtab takes for the argument; None where nothing can be offered."""
    named = words.get(str(action.metavar)) if action.type is None else None
    if named is not None:
        return _named([word for word in named if _SAFE.fullmatch(word)], files=action.metavar != "C")
    if action.metavar in ("DIR", "FOLDER", "MODEL", "RUN", "STUDY"):
        return dict(shtab.DIRECTORY)
    return dict(shtab.FILE) if action.type is Path or action.metavar in _FILES else None


def _named(words: list[str], files: bool) -> Mapping[str, Any]:
    """These words, and files or not, as each shell offers them."""
    listed = " ".join(words)
    name = f"_cascade_{crc32(listed.encode()):x}"
    also = 'compgen -f -- "$1"' if files else "true"
    return {
        "bash": name,
        "zsh": f"{{compadd {listed}{'; _files' * files}}}",
        "fish": f"(printf '%s\\n' {listed}{'; __fish_complete_path (commandline -ct)' * files})",
        "preamble": {"bash": f"{name}() {{ compgen -W '{listed}' -- \"$1\"; {also}; }}\n"},
    }
