"""The lock files hold everything that README's commands install, at the versions of pyproject.toml and constraints.txt."""

import importlib.metadata
import re
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
HERE = [("linux", "Linux", "x86_64"), ("darwin", "Darwin", "arm64"), ("win32", "Windows", "AMD64")]


def lines(name):
    """Requirements of a lock file, with their hashes; or of constraints."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    found = [line.split("--hash=") for line in text.splitlines() if not line.startswith("#")]
    return [(Requirement(line), [one.strip() for one in hashes]) for line, *hashes in found]


def pinned(name, environment):
    """Version of each package on a machine, by its name."""
    return {
        canonicalize_name(one.name): next(iter(one.specifier)).version
        for one, _ in lines(name)
        if one.marker is None or one.marker.evaluate(environment)
    }


def asked(extra):
    """What the project asks for, and what it is built with."""
    found, left = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"]], [extra] if extra else []
    while left:
        for line in EXTRAS[left.pop()]:
            one = Requirement(line)
            if one.name == PROJECT["project"]["name"]:
                left += one.extras
            else:
                found.append(line)
    return [Requirement(line) for line in found]


@pytest.mark.parametrize("name, extra", [("locks/run.txt", ""), ("locks/test.txt", "test")])
@pytest.mark.parametrize("python", ["3.11.7", "3.12.1", "3.13.0"])
@pytest.mark.parametrize("platform, system, machine", HERE)
def test_what_the_project_asks_for_is_locked_at_a_version_that_it_takes(name, extra, python, platform, system, machine):
    environment = {"python_version": python[:4], "python_full_version": python, "sys_platform": platform}
    environment |= {"platform_system": system, "platform_machine": machine}
    found = pinned(name, environment)
    for one in asked(extra):
        version = found.get(canonicalize_name(one.name))
        assert version in one.specifier, f"{name} has {one.name} {version}, pyproject.toml asks for {one}; run locks/renew.py"
    for one, _ in lines("constraints.txt"):
        version = found.get(canonicalize_name(one.name))
        assert version is None or version in one.specifier, f"{name} has {one.name} {version}, not {one}; run locks/renew.py"


@pytest.mark.parametrize("name", ["locks/run.txt", "locks/test.txt"])
def test_every_package_has_one_version_and_hashes(name):
    found = lines(name)
    assert len(found) > 40
    for one, hashes in found:
        assert [each.operator for each in one.specifier] == ["=="] and not one.url, one
        assert hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", each) for each in hashes), one
    text = (ROOT / name).read_text()
    assert "://" not in text and text.count("-i ") == 0, "where packages come from is for who installs to say"


def test_a_lock_holds_whatever_its_packages_ask_for_here():
    """All of them, followed through what is installed; CUDA's libraries are torch's own affair."""
    found, cuda, followed = pinned("locks/test.txt", None), pinned("locks/cuda.txt", None), 0
    for name, version in found.items():
        with suppress(importlib.metadata.PackageNotFoundError):
            package = importlib.metadata.distribution(name)
            if package.version.split("+")[0] != version:
                continue
            followed += 1
            for one in map(Requirement, package.requires or ()):
                if one.marker is None or one.marker.evaluate({"extra": ""}):
                    locked = (found | cuda).get(canonicalize_name(one.name))
                    assert locked in one.specifier, f"{name} asks for {one}, the lock has {locked}"
    assert followed > 40


def test_runs_and_tests_are_locked_alike_and_the_documented_commands_use_the_locks():
    run, test = (lines(f"locks/{name}.txt") for name in ("run", "test"))
    assert {(one.name, str(one.specifier), *h) for one, h in run} < {(one.name, str(one.specifier), *h) for one, h in test}
    readme = (ROOT / "README.md").read_text()
    for name, target in (("run", "."), ("test", "-e '.[test]'")):
        command = f".venv/bin/pip install -q --no-deps -r locks/{name}.txt \\\n"
        assert f"{command}  && .venv/bin/pip install -q --no-build-isolation -c locks/cuda.txt {target} && " in readme
    assert "--no-deps -r locks/test.txt" in (ROOT / ".ci" / "run").read_text()
