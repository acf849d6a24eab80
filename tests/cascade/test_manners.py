"""A cascade behaves as users of diffusers expect of a pipeline."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import cascade

from cascade import CascadePipeline, models
from cascade.stages.saved import ModelError


@pytest.fixture(scope="module")
def tiny():
    return cascade()


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    tiny.save_pretrained(folder)
    return folder


def test_it_says_what_it_is(tiny):
    assert repr(tiny) == (
        "CascadePipeline 'tiny', 3 classes, torch.float32 on cpu\n"
        "  base: BasePipeline, 8 px\n  sr16: SR3Pipeline, 16 px\n  sr32: SR3Pipeline, 32 px"
    )
    assert (tiny.device, tiny.dtype) == (torch.device("cpu"), torch.float32)


def test_its_components_make_it_again(tiny):
    again = CascadePipeline(**tiny.components)
    assert torch.equal(again("dog", seeds=2, output_type="pt").images, tiny("dog", seeds=2, output_type="pt").images)
    assert (again.classes, again.name, again.card) == (tiny.classes, tiny.name, tiny.card)


@pytest.mark.parametrize("options", [{"torch_dtype": torch.bfloat16}, {"dtype": "bfloat16"}, {"torch_dtype": "torch.bfloat16"}])
def test_the_number_type_is_given_as_to_diffusers(folder, options):
    assert CascadePipeline.from_pretrained(folder, device_map="cpu", **options).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dtype": "int8"}, "dtype is 'int8', expected a floating-point number type"),
        ({"dtype": "float16", "torch_dtype": "bfloat16"}, "dtype is given twice, as bfloat16 and as float16; give it once"),
        ({"size": 20}, "no stage of 'tiny' makes 20x20 images; choose from 8, 16, 32"),
        ({"variant": "fp16"}, "the model is incomplete: .*fp16.safetensors is missing"),
    ],
)
def test_what_can_not_be_loaded_is_refused_in_one_sentence(folder, options, problem):
    with pytest.raises(ValueError, match=problem):
        CascadePipeline.from_pretrained(folder, **options)


def test_only_the_stages_that_are_asked_for_are_loaded(folder, tiny):
    made = CascadePipeline.from_pretrained(folder, size=16)
    assert list(made.stages) == ["base", "sr16"] and made.folder == folder
    assert torch.equal(made("cat", seeds=1, output_type="pt").images, tiny("cat", seeds=1, size=16, output_type="pt").images)


def test_it_saves_in_the_number_type_that_it_holds_and_in_shards(folder, tmp_path):
    half = CascadePipeline.from_pretrained(folder, dtype="float16")
    half.save_pretrained(tmp_path / "half", max_shard_size="10KB")
    files = sorted((tmp_path / "half" / "base" / "unet").glob("*.safetensors"))
    assert len(files) > 1 and all(v.dtype == torch.float16 for file in files for v in load_file(file).values())
    again = CascadePipeline.from_pretrained(tmp_path / "half", dtype="float16")
    assert torch.equal(again.stages["base"].unet.conv_in.weight, half.stages["base"].unet.conv_in.weight)


def test_weights_of_a_variant_are_loaded(folder, tmp_path, tiny):
    for name, stage in tiny.stages.items():
        stage.save_pretrained(tmp_path / "model" / name, variant="fp16")
    (tmp_path / "model" / "cascade.json").write_bytes((folder / "cascade.json").read_bytes())
    made = CascadePipeline.from_pretrained(tmp_path / "model", variant="fp16")
    assert torch.equal(made.stages["sr32"].unet.conv_in.weight, tiny.stages["sr32"].unet.conv_in.weight)


def test_options_of_the_hub_reach_it(monkeypatch, folder):
    asked = {}
    monkeypatch.setattr("cascade.stages.saved.download", lambda name, **options: asked.update(options, name=name) or folder)
    options = {"revision": "abc", "cache_dir": "there", "local_files_only": True, "token": "secret"}
    CascadePipeline.from_pretrained("someone/tiny", **options)
    assert asked == options | {"name": "someone/tiny"}


class Hub:
    """Keeps what would be uploaded."""

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, private=None, exist_ok=False):
        Hub.private = private
        return type("Url", (), {"repo_id": f"me/{repo_id}"})

    def upload_folder(self, folder_path, repo_id, **options):
        Hub.files = sorted(path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*.json"))
        return f"https://hub/{repo_id}"


def test_it_is_pushed_to_the_hub(monkeypatch, tiny, tmp_path):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert tiny.push_to_hub("tiny", private=True) == "https://hub/me/tiny"
    assert Hub.private and "cascade.json" in Hub.files and "sr16/unet/config.json" in Hub.files
    Hub.files = []
    tiny.save_pretrained(tmp_path / "kept", push_to_hub=True)
    assert "cascade.json" in Hub.files


def test_a_hub_that_can_not_be_reached_is_one_sentence(monkeypatch, folder):
    def refuse(self, *args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    with pytest.raises(ConnectionError, match="'me/tiny' could not be uploaded to the Hugging Face Hub"):
        models.upload(folder, "me/tiny")


def test_a_damaged_model_is_an_error_of_one_class(tmp_path):
    (tmp_path / "cascade.json").write_text("{}")
    with pytest.raises(ModelError, match="has format None"):
        CascadePipeline.from_pretrained(tmp_path)


def test_the_public_face_needs_no_torch_until_it_is_used(tmp_path):
    script = "import sys, cascade, cascade.models, cascade.stage_sampling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path).returncode == 0
    everything = "import cascade; [getattr(cascade, name) for name in cascade.__all__]"
    assert subprocess.run([sys.executable, "-c", everything], cwd=tmp_path).returncode == 0
