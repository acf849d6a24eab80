"""What shells complete: bash, zsh and fish themselves are asked."""

import os
import pty
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from cascade.cli import generate
from cascade.cli.completion import SHELLS, script
from cascade.cli.main import COMMANDS, main

LINES = {
    "cascade tr": {"train"},
    "generate --cl": {"--class"},
    "generate --class cat --dtype f": {"float16", "float32"},
    "generate --class ca": {"camera-and-light", "car", "cat"},
    "generate --class cat --model em": {"emoji"},
    "cascade train emoji/b": {"emoji/base64"},
    "cascade train pl": {"plot"},
    "cascade evaluate ch": {"check"},
    "cascade evaluate sr --protocol emoji-2": {"emoji-256"},
    "cascade fit my-p": {"my-pictures/"},
    "cascade upscale my-": {"my-pictures/", "my-photo.png"},
}
"""Beginnings of command lines, and the words that the last one may become."""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """A file with the script of each shell, beside a picture and a folder."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "my-pictures").mkdir()
    (folder / "my-photo.png").touch()
    for shell in SHELLS:
        (folder / shell).write_text(script(shell, generate, COMMANDS))
    return folder


def asked(program: list[str], folder: Path) -> str:
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def needs(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not on this machine")


def test_bash_completes(scripts):
    needs("bash")
    ask = """eval "$(cat bash)"
    for line in "$@"; do
      COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
      function=$(complete -p ${COMP_WORDS[0]} | sed 's/.* -F \\([^ ]*\\).*/\\1/')
      $function ${COMP_WORDS[0]} "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
      echo "${COMPREPLY[@]}"
    done"""
    told = asked(["bash", "-c", ask, "bash", *LINES], scripts).splitlines()
    for line, found in zip(LINES, told, strict=True):
        assert set(found.split()) == {word.rstrip("/") for word in LINES[line]}, line  # readline adds the slash


def test_fish_completes(scripts):
    needs("fish")
    ask = "eval (cat fish | string collect); for line in $argv; echo (complete -C $line | string split -f1 \\t); end"
    told = asked(["fish", "--no-config", "-c", ask, *LINES], scripts).splitlines()
    for line, found in zip(LINES, told, strict=True):
        assert set(found.split()) >= LINES[line], line


def test_zsh_completes(scripts, monkeypatch):
    """In its line editor, by a pseudo-terminal: a word that can be only one thing is finished by the tabulator."""
    needs("zsh")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.chdir(scripts)
    child, terminal = pty.fork()
    if child == 0:
        os.execvp("zsh", ["zsh", "-f", "-i"])

    def until(pattern: str) -> str:
        seen, end = "", time.monotonic() + 30
        while not re.search(pattern, seen):
            assert time.monotonic() < end, seen
            seen += os.read(terminal, 65536).decode()
        return seen

    try:
        os.write(terminal, b"PS1='ready> '; bindkey -e; autoload -U compinit; compinit -u -D; eval \"$(cat zsh)\"; echo do''ne\n")
        until(r"done\r?\n[^$]*ready> ")  # the line editor is there
        for line, words in LINES.items():
            if len(words) == 1:
                os.write(terminal, f"{line}\t #\x15".encode())  # the rest is taken back
                assert f"{line.rpartition(' ')[0]} {min(words)}" in until("#").replace("\x08", ""), line
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def test_the_script_is_printed_whole_and_needs_a_shell_that_is_known(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--print-completion", "bash"])
    assert left.value.code == 0 and capsys.readouterr().out == script("bash", generate, COMMANDS)
    assert main(["--print-completion", "csh"]) == 2
    assert "invalid choice: 'csh'" in capsys.readouterr().err
