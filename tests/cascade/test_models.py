import json
import shutil
import sys

import huggingface_hub
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from tiny import CLASSES, base, cascade, foreign, sr3

from cascade import CascadePipeline
from cascade.classes import imagenet
from cascade.folder import Manifest, StageEntry
from cascade.models import SHIPPED, resolve
from cascade.stages.saved import ModelError


@pytest.fixture(scope="module")
def tiny():
    return cascade(base=base(), sr16=sr3())


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved, tmp_path / "tiny")


def images(made, **given):
    made.set_progress_bar_config(disable=True)
    return made(["cat", "fruit"], seeds=[3, 4], output_type="pt", **given).images


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def weights(folder, stage="base"):
    return folder / stage / "unet" / "diffusion_pytorch_model.safetensors"


def test_a_cascade_survives_saving_to_the_byte(tiny, saved):
    loaded = CascadePipeline.from_pretrained(saved)
    assert torch.equal(images(loaded), images(tiny))
    assert (loaded.name, loaded.card, loaded.classes) == (tiny.name, tiny.card, tiny.classes)
    assert loaded.sizes == {"base": 8, "sr16": 16}
    assert not any(stage.unet.training for stage in loaded.stages.values())
    assert (saved / "README.md").read_text() == tiny.card


def test_cascade_json_says_what_the_model_is(saved):
    assert json.loads((saved / "cascade.json").read_text()) == {
        "format": 1,
        "name": "tiny",
        "classes": CLASSES,
        "stages": [
            {"name": "base", "folder": "base", "pipeline": "BasePipeline", "size": 8, "low_res_size": None},
            {"name": "sr16", "folder": "sr16", "pipeline": "SR3Pipeline", "size": 16, "low_res_size": 8},
        ],
        "default_size": None,
    }
    assert Manifest.read(saved).stages[1] == StageEntry("sr16", "sr16", "SR3Pipeline", 16, 8)
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "base", "cascade.json", "sr16"]


def test_stages_keep_their_settings_schedulers_and_guides(tmp_path):
    made = cascade(base=base(), sr16=sr3())
    made.stages["base"].scheduler = DDIMScheduler(prediction_type="v_prediction")
    made.stages["base"].register_modules(guide_unet=base(seed=5).unet)
    made.stages["base"].register_to_config(guidance_scale=2.5, guidance_interval=[0.1, 9.0])
    made.save_pretrained(tmp_path / "guided")
    loaded = CascadePipeline.from_pretrained(tmp_path / "guided")
    assert isinstance(loaded.stages["base"].scheduler, DDIMScheduler)
    assert loaded.stages["base"].config["guidance_interval"] == [0.1, 9.0]
    assert torch.equal(images(loaded), images(made))
    assert not torch.equal(images(loaded, guidance_scale=1.0), images(made))


def test_weights_stored_as_float16_are_loaded_as_float32(tmp_path):
    made = cascade(base=base(), sr16=sr3())
    made.to(torch.float16).save_pretrained(tmp_path / "half")
    assert {value.dtype for value in load_file(weights(tmp_path / "half")).values()} == {torch.float16}
    loaded = CascadePipeline.from_pretrained(tmp_path / "half")
    assert {stage.unet.dtype for stage in loaded.stages.values()} == {torch.float32}
    assert torch.equal(images(loaded), images(made.to(torch.float32)))
    half = CascadePipeline.from_pretrained(tmp_path / "half", dtype=torch.bfloat16, device="meta")
    assert {(stage.unet.dtype, stage.unet.device.type) for stage in half.stages.values()} == {(torch.bfloat16, "meta")}


def test_weights_in_several_files_are_one_network(folder, tiny):
    tiny.stages["base"].unet.save_pretrained(folder / "base" / "unet", max_shard_size="20KB")
    assert len(list((folder / "base" / "unet").glob("*-of-*.safetensors"))) > 1
    assert torch.equal(images(CascadePipeline.from_pretrained(folder)), images(tiny))
    sorted((folder / "base" / "unet").glob("*-of-*.safetensors"))[0].unlink()
    with pytest.raises(ModelError, match=r"incomplete: .*-00001-of-\d+.safetensors is missing"):
        CascadePipeline.from_pretrained(folder)


def test_a_loaded_model_does_not_change_with_its_files(folder, tiny):
    loaded = CascadePipeline.from_pretrained(folder)
    for path in folder.rglob("*.safetensors"):
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
    assert torch.equal(images(loaded), images(tiny))


def test_a_foreign_base_survives_saving(tmp_path):
    made = cascade(base=foreign(), sr16=sr3())
    made.save_pretrained(tmp_path / "mixed")
    loaded = CascadePipeline.from_pretrained(tmp_path / "mixed")
    assert type(loaded.stages["base"]).__name__ == "DDPMPipeline"
    assert torch.equal(images(loaded, num_inference_steps=2), images(made, num_inference_steps=2))


def test_imagenet_is_stored_by_its_name(tmp_path):
    for classes, stored in ((imagenet(), {"vocabulary": "imagenet"}), (None, None)):
        Manifest("x", classes, (StageEntry("base", "base", "BasePipeline", 64),)).write(tmp_path)
        assert json.loads((tmp_path / "cascade.json").read_text())["classes"] == stored
        assert Manifest.read(tmp_path).classes == classes


def test_the_default_size_is_stored_and_checked(folder, tiny):
    CascadePipeline(tiny.stages, tiny.classes, default_size=8).save_pretrained(folder)
    loaded = CascadePipeline.from_pretrained(folder)
    assert loaded.default_size == 8 and images(loaded).shape[-1] == 8
    for size in (12, "8", [8]):
        change(folder / "cascade.json", default_size=size)
        with pytest.raises(ModelError, match="expected the size of one of its stages"):
            CascadePipeline.from_pretrained(folder)


def test_saving_replaces_a_cascade_and_nothing_else(folder, tmp_path, tiny):
    (folder / "left over.txt").write_text("old")
    tiny.save_pretrained(folder)
    assert not (folder / "left over.txt").exists() and resolve(folder) == folder
    (tmp_path / "empty").mkdir()
    tiny.save_pretrained(tmp_path / "empty")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.png").write_text("precious")
    with pytest.raises(ValueError, match="photos is there already and is not a cascade"):
        tiny.save_pretrained(photos)
    assert (photos / "cat.png").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "photos", "tiny"]


def test_a_save_that_fails_leaves_the_old_cascade(folder, tmp_path, tiny, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Manifest, "write", full)
    with pytest.raises(OSError, match="No space left"):
        tiny.save_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    CascadePipeline.from_pretrained(folder)


def truncate(path, to):
    path.write_bytes(path.read_bytes()[:to])


def rewrite(path, **tensors):
    """Exchange tensors of a safetensors file; None takes one out."""
    kept = {name: value for name, value in (load_file(path) | tensors).items() if value is not None}
    save_file(kept, path)


DAMAGES = {
    "no cascade.json": (
        lambda f: (f / "cascade.json").unlink(),
        "is not a cascade, or an incomplete one: it has no cascade.json",
    ),
    "half a cascade.json": (lambda f: truncate(f / "cascade.json", 40), "cascade.json is damaged or can't be used"),
    "no object": (lambda f: (f / "cascade.json").write_text("[]"), "it holds a list, expected an object"),
    "format": (lambda f: change(f / "cascade.json", format=2), "has format 2, but this version of cascade reads format 1"),
    "no stages": (lambda f: change(f / "cascade.json", stages=[]), "has no stages"),
    "stages of another kind": (lambda f: change(f / "cascade.json", stages=[{"size": 3}]), "cascade.json is damaged"),
    "classes": (lambda f: change(f / "cascade.json", classes={"vocabulary": "mine"}), "expected a list of names"),
    "too few classes": (lambda f: change(f / "cascade.json", classes=["cat"]), "names for 1 classes, but the stages know 3"),
    "path": (lambda f: entry(f, folder="../elsewhere"), "in folder '../elsewhere', expected names without a path"),
    "size of no kind": (lambda f: entry(f, size="8"), "expected whole numbers"),
    "other size": (lambda f: entry(f, size=64), "does not describe the stages beside it"),
    "unknown pipeline": (lambda f: entry(f, pipeline="MyPipeline"), "'base' .* is a 'MyPipeline', expected BasePipeline"),
    "no pipeline": (lambda f: entry(f, pipeline="UNet2DModel"), "is a 'UNet2DModel', expected BasePipeline"),
    "any pipeline": (lambda f: entry(f, pipeline="DiffusionPipeline"), "is a 'DiffusionPipeline', expected BasePipeline"),
    "another pipeline": (lambda f: entry(f, pipeline="SR3Pipeline"), "does not describe the SR3Pipeline that cascade.json names"),
    "no stage": (lambda f: shutil.rmtree(f / "sr16"), "is incomplete: it lacks the folder 'sr16' of stage 'sr16'"),
    "no index": (lambda f: (f / "base" / "model_index.json").unlink(), "incomplete: .*model_index.json is missing"),
    "no config": (lambda f: (f / "base" / "unet" / "config.json").unlink(), "incomplete: .*config.json is missing"),
    "no scheduler": (lambda f: shutil.rmtree(f / "base" / "scheduler"), "incomplete: .*scheduler_config.json is missing"),
    "no weights": (lambda f: weights(f).unlink(), "incomplete: .*diffusion_pytorch_model.safetensors is missing"),
    "half the weights": (lambda f: truncate(weights(f), -1000), "diffusion_pytorch_model.safetensors is damaged"),
    "no weights left": (lambda f: truncate(weights(f), 5), "diffusion_pytorch_model.safetensors is damaged"),
    "shape": (
        lambda f: rewrite(weights(f), **{"conv_in.weight": torch.zeros(8, 6, 3, 3)}),
        r"conv_in.weight has shape \(8, 6, 3, 3\), expected \(8, 3, 3, 3\)",
    ),
    "missing tensor": (lambda f: rewrite(weights(f), **{"conv_in.bias": None}), "are incomplete: conv_in.bias is missing"),
    "further tensor": (lambda f: rewrite(weights(f), more=torch.zeros(1)), "it has no place for more"),
    "NaN": (
        lambda f: rewrite(weights(f), **{"conv_in.bias": torch.full((8,), torch.nan)}),
        "conv_in.bias holds values that are not",
    ),
    "config of no network": (lambda f: change(f / "base" / "unet" / "config.json", channels=[8, 9]), "config.json is damaged"),
    "config of another": (
        lambda f: change(f / "base" / "unet" / "config.json", _class_name="X"),
        "describes a X, expected the UNet",
    ),
    "setting": (lambda f: change(f / "base" / "model_index.json", colour=1), "model_index.json is damaged .* 'colour'"),
    "stages that don't fit": (
        lambda f: change(f / "cascade.json", stages=json.loads((f / "cascade.json").read_text())["stages"][::-1]),
        "the first stage, 'sr16', enlarges images",
    ),
}


def entry(model, /, **values):
    """Change the first stage in cascade.json."""
    stages = json.loads((model / "cascade.json").read_text())["stages"]
    change(model / "cascade.json", stages=[stages[0] | values, *stages[1:]])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_refused_in_one_sentence(folder, damage):
    do, problem = DAMAGES[damage]
    do(folder)
    with pytest.raises(ModelError, match=problem) as caught:
        CascadePipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "component",
    [["os", "system"], ["unet", "UNet"], ["torch.nn", "Linear"], ["diffusers", "DDPMPipeline"], ["stages.sr3", "SR3Pipeline"]],
)
def test_a_component_of_another_library_is_refused(folder, component):
    change(folder / "base" / "model_index.json", unet=component)
    with pytest.raises(ModelError, match=f"asks for {'.'.join(component)} as its unet, which is neither ours nor diffusers' own"):
        CascadePipeline.from_pretrained(folder)


def test_nothing_in_a_model_is_executed(folder):
    """Modules beside the files are not imported, whatever the files say of them."""
    change(folder / "base" / "model_index.json", unet=["cascade.stages.published.evil", "Evil"])
    with pytest.raises(ModelError, match="cascade.stages.published.evil"):
        CascadePipeline.from_pretrained(folder)
    (folder / "base" / "unet" / "evil.py").write_text("raise SystemExit('executed')")
    with pytest.raises(ModelError, match="evil.py could execute code when it is loaded, so it is refused"):
        CascadePipeline.from_pretrained(folder)
    assert "evil" not in sys.modules


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "weights.pt", "old/weights.PKL", "model.ckpt"])
def test_pickled_weights_are_refused(folder, name):
    path = folder / "sr16" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="could execute code when it is loaded, so it is refused; store weights as safetensors"):
        CascadePipeline.from_pretrained(folder)


def test_names_are_resolved(saved, tmp_path, monkeypatch):
    assert resolve(str(saved)) == saved and resolve(saved) == saved
    monkeypatch.setitem(SHIPPED, "emoji", saved)
    assert resolve("emoji") == saved
    monkeypatch.setitem(SHIPPED, "emoji", tmp_path)
    with pytest.raises(ModelError, match="the shipped model 'emoji' is missing from this installation"):
        resolve("emoji")
    with pytest.raises(ModelError, match="there is no model 'emojy': .* known by name are emoji, adm-256"):
        resolve("emojy")
    with pytest.raises(ModelError, match="there is no model"):
        resolve(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="is a file, expected the folder of a cascade"):
        resolve(tmp_path / "file")


def test_hub_models_are_downloaded_without_anything_executable(monkeypatch, saved):
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("someone/tiny") == saved
    assert asked == [("someone/tiny", {"allow_patterns": ["*.json", "*.safetensors", "*.md"]})]


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="'someone/nothing' is not a local folder, and the Hugging Face Hub can't be reached"):
        resolve("someone/nothing")


def test_a_download_that_fails_is_one_sentence(monkeypatch):
    def download(name, **options):
        raise OSError("No space left on device\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError, match=r"could not be downloaded .* \(OSError: No space left on device\)$"):
        resolve("someone/nothing")
