"""Write the lock files anew: exact versions and hashes of everything that the commands of README install.

    pip install uv && python locks/renew.py [--upgrade]

Versions stay as they are where pyproject.toml and constraints.txt let them; `--upgrade` takes the newest that they allow. The
files hold for Python 3.11 and later on Linux, macOS and Windows. Of torch they know the files of PyPI and those of PyTorch's own
index for CPUs. The CUDA libraries of PyPI's torch for Linux are not in them, as they would be installed where torch needs none;
cuda.txt has their versions.
"""

import re
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

LOCKS = Path(__file__).parent
PROJECT = LOCKS.parent / "pyproject.toml"
CUDA = re.compile(r"(nvidia|cuda)-|triton==")
CPU_TORCH = "https://download.pytorch.org/whl/cpu/torch/"
HEAD = "# By locks/renew.py, not by hand."
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
INDENT = " \\\n    --hash=sha256:"

EDITABLE = "editables"
"""What hatchling needs to install a checkout in place."""


def main() -> None:
    build = tomllib.loads(PROJECT.read_text())["build-system"]["requires"]
    of_test, of_run = ["--extra", "test"], ["-c", "locks/test.txt"]  # a run has the versions of the tests
    for name, also, options in (("test.txt", [*build, EDITABLE], of_test), ("run.txt", build, of_run)):
        before = [(LOCKS / file).read_text() if (LOCKS / file).exists() else "" for file in (name, "cuda.txt")]
        found = resolved(also, "\n".join(before), *options)
        ours = [with_cpu_files(one, before[0]) if one.startswith("torch==") else one for one in found if not CUDA.match(one)]
        (LOCKS / name).write_text("\n".join([HEAD, *ours]) + "\n")
    cuda = [re.split(r"\s*\\\n", one)[0] for one in found if CUDA.match(one)]
    (LOCKS / "cuda.txt").write_text("\n".join([HEAD, *cuda]) + "\n")


def resolved(also: list[str], before: str, *options: str) -> list[str]:
    """The packages of the project and of what is needed beside it, as uv finds them; those of `before` where they fit."""
    with TemporaryDirectory() as folder:
        lock = Path(folder) / "lock.txt"
        lock.write_text(before)
        command = ["uv", "pip", "compile", PROJECT.name, "-", "-c", "constraints.txt", "--universal", "--python-version", "3.11"]
        command += ["--generate-hashes", "--no-header", "--no-annotate", "--quiet", "--output-file", str(lock)]
        subprocess.run([*command, *options, *sys.argv[1:]], input="\n".join(also), text=True, cwd=PROJECT.parent, check=True)
        return entries(lock.read_text())


def entries(lock: str) -> list[str]:
    """A package each, with its hashes."""
    return re.findall(r"^[\w.-]+(?:\[.*?\])?==(?:.*\\\n)*.*$", lock, re.MULTILINE)


def with_cpu_files(torch: str, before: str) -> str:
    """Torch's entry with the hashes of its files for CPUs, as PyTorch's index has them; without a connection, as they were."""
    version = re.match(r"torch==([\d.]+)", torch)[1]  # type: ignore[index]
    try:
        with urllib.request.urlopen(CPU_TORCH, timeout=30) as page:
            links = page.read().decode()
        hashes = re.findall(rf"torch-{re.escape(version)}(?:%2B|\+)cpu-[^\"]*#sha256=([0-9a-f]{{64}})", links)
    except OSError as error:
        hashes = [h for one in entries(before) if one.startswith(f"torch=={version} ") for h in HASH.findall(one)]
        print(f"{CPU_TORCH} can't be reached ({error}); the {len(hashes)} hashes of before are kept", file=sys.stderr)
    head = re.split(r"\s*\\\n", torch)[0]
    return head + "".join(INDENT + one for one in sorted({*HASH.findall(torch), *hashes}))


if __name__ == "__main__":
    main()
