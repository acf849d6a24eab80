"""The wheel: built, installed into a new environment, it generates outside the checkout."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (path,) = out.glob("*.whl")
    return path


def run(*command, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_that_it_generates(python: Path, folder: Path) -> None:
    run(python.parent / "generate", "--class", "cat", "--seed", 7, "--steps", "2,1", "--out", folder / "cat.png", cwd=folder)
    with Image.open(folder / "cat.png") as image:
        assert image.size == (256, 256)
    home = Path(run(python, "-c", "import cascade; print(cascade.__file__)", cwd=folder).strip())
    assert python.parents[1] in home.parents, f"cascade came from {home}, not from the wheel"


def check_that_a_users_own_modules_are_left_alone(python: Path, folder: Path) -> None:
    """`python -m` and scripts search the folder that they are started in first."""
    for name in ("eval.py", "stages/__init__.py", "configs/__init__.py", "tests/__init__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("raise SystemExit('the user's own module ran')")
    (folder / "pictures").mkdir()
    command = [python, "-m", "cascade", "evaluate", "images", "pictures", "--reference", "drawings:heldout"]
    done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2 and "pictures" in done.stderr and "own module" not in done.stderr, done.stderr
    run(python, "-c", "import cascade.stages.unet, cascade.eval.frechet, cascade.training", cwd=folder)


def test_the_wheel_holds_rooms_recipes_model_and_licences(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "cascade/stages/unet.py",
        "cascade/eval/frechet.py",
        "cascade/eval/page.html",
        "cascade/assets/drawings.tar.xz",
        "cascade/assets/emoji/cascade.json",
        "cascade/configs/emoji/base64.yaml",
    ):
        assert name in names, f"{name} is missing"
    assert {Path(name).name for name in names if "dist-info/licenses" in name} == {"LICENSE", "NOTICE"}
    assert "cascade/py.typed" in names
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"cascade", "cascade_diffusion"}, "names are taken"
    assert len(names) == len(zipfile.ZipFile(wheel).namelist()), "a file is in the wheel twice"


def test_installed_elsewhere_it_generates_outside_the_checkout(wheel, tmp_path):
    """The libraries are borrowed from this environment; ours come from the wheel alone."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    install = ("install", "--quiet", "--no-deps", "--prefix", home, "--ignore-installed")  # else pip takes ours from here away
    run(sys.executable, "-m", "pip", *install, wheel, cwd=tmp_path)
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    python = home / "bin" / "python"
    for script in ("generate", "cascade"):
        path = home / "bin" / script
        path.write_text(path.read_text().replace(sys.executable, str(python)))
    check_that_it_generates(python, tmp_path)
    check_that_a_users_own_modules_are_left_alone(python, tmp_path)


@pytest.mark.slow
def test_installed_with_its_dependencies_it_generates(wheel, tmp_path):
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    check_that_it_generates(python, tmp_path)
