"""Models in installed packages: found by name without running a package's code, and told in a sentence where one is broken."""

import base64
import hashlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from cascade import BasePipeline, CascadePipeline, SR3Pipeline
from cascade.classes import Vocabulary
from cascade.cli.main import main
from cascade.folder import Manifest, StageEntry
from cascade.models import packaged, resolve
from cascade.stages.saved import ModelError
from cascade.stages.unet import UNet

MANIFEST = Manifest("tiny", Vocabulary.from_names(["ant", "bee"]), (StageEntry("base", "base", "BasePipeline", 8),))


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """An empty folder of installed packages."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def install(site: Path, package: str, model: str, value: str | None = None) -> Path:
    """A package as pip lays it out, whose code must not run, with an entry point of this value; the folder of its model."""
    module = package.replace("-", "_")
    info, home = site / f"{module}-1.0.dist-info", site / module
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[cascade.models]\n{model} = {value or module}\n")
    home.mkdir()
    (home / "__init__.py").write_text("raise SystemExit('executed')\n")
    MANIFEST.write(home)
    return home


def test_a_packaged_model_is_found_by_its_name_and_its_code_is_not_run(site, tmp_path, monkeypatch, capsys):
    home = install(site, "their-model", "tiny-beetles")
    assert resolve("tiny-beetles") == home and "their_model" not in sys.modules
    assert [(offer.name, offer.package) for offer in packaged()] == [("tiny-beetles", "their-model 1.0")]
    assert main(["classes", "--model", "tiny-beetles"]) == 0
    assert capsys.readouterr().out == "0  ant\n1  bee\n"
    with pytest.raises(ModelError, match="known by name are emoji, tiny-beetles, adm-256"):
        resolve("tiny-beetle")
    monkeypatch.chdir(tmp_path)
    Path("tiny-beetles").mkdir()
    MANIFEST.write(Path("tiny-beetles"))
    assert resolve("tiny-beetles") == home and resolve("./tiny-beetles") == Path("tiny-beetles")


def test_shipped_models_and_two_offers_of_one_name(site):
    install(site, "impostor", "emoji")
    assert site not in resolve("emoji").parents
    install(site, "first", "twice")
    install(site, "second", "twice")
    with pytest.raises(ModelError, match=r"^model 'twice' is offered by first 1.0 and second 1.0; uninstall all but one"):
        resolve("twice")


def test_broken_and_newer_packages_are_told_in_a_sentence(site):
    home = install(site, "half", "half")
    (home / "cascade.json").unlink()
    with pytest.raises(ModelError, match="^the package half 1.0 of model 'half' is broken: .*cascade.json is not there; install"):
        resolve("half")
    for number, value in enumerate(("not_there", "os:path", "os.path", "json", "__main__")):
        install(site, f"gone-{number}", f"gone-{number}", value)
        with pytest.raises(ModelError, match=rf"of model 'gone-{number}' is broken: .* is not there; install it again$"):
            resolve(f"gone-{number}")
    newer = install(site, "newer", "newer")
    text = (newer / "cascade.json").read_text().replace('"format": 1', '"format": 2')
    (newer / "cascade.json").write_text(text)
    with pytest.raises(ModelError, match="has format 2, but this version of cascade reads format 1; install a newer"):
        Manifest.read(resolve("newer"))


def test_packaged_models_are_listed_and_a_broken_one_hides_no_other(site, capsys):
    install(site, "their-model", "tiny-beetles")
    broken = install(site, "half", "half")
    (broken / "cascade.json").write_text("{")
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    assert "emoji (model): 64 -> 256 -> 1024 px" in said and "pmf-b-256 (preset)" in said
    assert "tiny-beetles (model): 8 px, 2 classes, 0 MB, licence not stated" in said
    assert "half (broken: " in said and "cascade.json is damaged" in said


def test_a_refining_stage_without_classes_needs_none_behind_a_base_with_classes(here, capsys):
    """As SR3's own cascade: only the base sees the class."""
    shape = {"channels": [8], "blocks": [1], "attention_sizes": [], "head_channels": 8, "layout": "efficient"}
    base = BasePipeline(UNet(sample_size=8, num_classes=2, **shape), DDIMScheduler(), num_inference_steps=1)
    later = SR3Pipeline(UNet(sample_size=16, low_res_size=8, **shape), DDIMScheduler(), num_inference_steps=1)
    made = CascadePipeline({"base": base, "sr16": later}, ["cat", "dog"])
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    free = made.upscale(small, seeds=0, output_type="pt")
    assert free.labels is None
    assert torch.equal(free.images, made.upscale(small, "cat", seeds=0, output_type="pt").images)
    with pytest.raises(ValueError, match="class_labels is missing"):
        made(seeds=0)
    made.save_pretrained("model")
    Image.new("RGB", (8, 8), "red").save("photo.png")
    assert main(["upscale", "photo.png", "--model", "model", "--out", "large.png"]) == 0
    capsys.readouterr()
    with Image.open("large.png") as large:
        assert large.size == (16, 16)


def test_the_wheel_of_our_own_package_is_whole_and_found_offline(site, tmp_path, monkeypatch):
    """Built by its own backend, with a small model in place of the weights, and unpacked as pip does."""
    source, made = Path(__file__).parents[2] / "packages" / "cascade-imagenet", tmp_path / "package"
    (made / "cascade_imagenet" / "base" / "unet").mkdir(parents=True)
    for name in ("pyproject.toml", "wheel_of_data.py", "cascade_imagenet/__init__.py"):
        shutil.copyfile(source / name, made / name)
    (made / "cascade_imagenet" / "README.md").write_text("# The card\n")
    (made / "cascade_imagenet" / "base" / "unet" / "weights.safetensors").write_bytes(bytes(range(256)))
    MANIFEST.write(made / "cascade_imagenet")
    assert tomllib.loads((made / "pyproject.toml").read_text())["build-system"]["requires"] == []
    build = "import wheel_of_data, sys; print(wheel_of_data.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=made, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(tmp_path / done.stdout.strip()) as wheel:
        wheel.extractall(site)
        names = wheel.namelist()
    (info,) = site.glob("*.dist-info")
    rows = [line.split(",") for line in (info / "RECORD").read_text().splitlines()]
    assert sorted(row[0] for row in rows) == sorted(names) and "cascade_imagenet/base/unet/weights.safetensors" in names
    for place, digest, size in rows[:-1]:
        data = (site / place).read_bytes()
        assert int(size) == len(data)
        assert digest == "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    found = distribution("cascade-imagenet")
    assert found.requires == ["cascade-diffusion>=0.1"] and found.metadata["Description-Content-Type"] == "text/markdown"
    assert resolve("imagenet") == site / "cascade_imagenet" and "cascade_imagenet" not in sys.modules
