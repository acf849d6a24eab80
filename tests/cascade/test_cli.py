"""How the command line is read, and how mistakes and failures are answered."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cascade import CascadePipeline
from cascade import png as pictures
from cascade.classes import Vocabulary
from cascade.cli.arguments import Parser, level, per_stage, positive
from cascade.cli.generate import main as generate
from cascade.cli.main import COMMANDS, main


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Values


def test_a_setting_is_for_all_stages_for_each_or_for_the_named():
    stages = ["base", "sr256"], ["base", "sr256"]
    assert per_stage("--steps", None, positive, *stages) is None
    assert per_stage("--steps", "8", positive, *stages) == 8
    assert per_stage("--steps", "20,8", positive, *stages) == {"base": 20, "sr256": 8}
    assert per_stage("--steps", "sr256=8", positive, *stages) == {"sr256": 8}
    assert per_stage("--aug-level", "sr256=0.5, base=0", level, *stages) == {"base": 0.0, "sr256": 0.5}
    for wrong in ("20,8,3", "sr64=8", "base=20,8", "base=x", "0", "", "8,"):
        with pytest.raises(ValueError, match="--steps"):
            per_stage("--steps", wrong, positive, *stages)
    later = ["base", "sr256", "sr1024"], ["base", "sr256"]
    assert per_stage("--steps", "20,8", positive, *later) == {"base": 20, "sr256": 8}
    assert per_stage("--steps", "20,8,4", positive, *later) == {"base": 20, "sr256": 8, "sr1024": 4}
    for wrong in ("20,8,4,2", "20,8,4,2,1"):
        with pytest.raises(ValueError, match="values for 2 stages \\(base, sr256\\)"):
            per_stage("--steps", wrong, positive, *later)


def test_the_name_of_a_file_tells_classes_of_one_name_apart():
    classes = Vocabulary.from_names(["crane", "Grand Piano/Flügel", "crane", "Crane!"])
    assert pictures.stems(classes, range(4)) == ["crane-0", "grand-piano-flügel", "crane-2", "crane-3"]
    assert pictures.stems(None, [7, None]) == ["class-7", "image"]


# Mistakes and failures


def damaged(model: Path, folder: Path, change) -> str:
    """A copy of the model with something wrong."""
    shutil.copytree(model, folder)
    change(folder)
    return str(folder)


def with_weight(name: str, value: float, shape: tuple[int, ...] | None = None):
    def change(folder: Path) -> None:
        path = folder / "base/unet/diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        weights[name] = torch.full(shape or weights[name].shape, value)
        save_file(weights, path, {"format": "pt"})

    return change


def truncated(folder: Path) -> None:
    path = folder / "base/unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def misfit(folder: Path) -> None:
    """The second stage refines larger images than the first makes."""
    path = folder / "cascade.json"
    values = json.loads(path.read_text())
    config_path = folder / "sr16/unet/config.json"
    config = json.loads(config_path.read_text())
    values["stages"][1]["low_res_size"] = config["low_res_size"] = 12
    path.write_text(json.dumps(values))
    config_path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--class", "hotdog"], "unknown class 'hotdog' among 3 classes: the closest are 'hot dog' (1)"),
        (["--class", "3"], "3"),
        (["--class", "-1"], "-1"),
        ([], "no class is given: 'tiny' makes 3 of them, as --class cat"),
        (["--class", "cat", "--class", "0"], "class '0' is given twice"),
        (["--class", "cat", "--size", "32"], "no stage of 'tiny' makes 32x32 images; choose from 8, 16"),
        (["--class", "cat", "--size", "0"], "argument --size: '0' is not a whole number of at least 1"),
        (["--class", "cat", "-n", "0"], "argument -n: '0' is not a whole number of at least 1"),
        (["--class", "cat", "-n", "-2"], "argument -n: '-2'"),
        (["--class", "cat", "-n", "two"], "argument -n: 'two'"),
        (["--class", "cat", "--batch-size", "0"], "argument --batch-size"),
        (["--class", "cat", "--seed", "-1"], "argument --seed"),
        (["--class", "cat", "--seed", "1.5"], "argument --seed"),
        (["--class", "cat", "--steps", "0"], "argument --steps: '0'"),
        (["--class", "cat", "--steps", "1,2,3"], "has 3 values for 2 stages (base, sr16)"),
        (["--class", "cat", "--steps", "sr32=2"], "'sr32', which is not one of the stages base, sr16"),
        (["--class", "cat", "--aug-level", "1.5"], "argument --aug-level: '1.5' is not a number from 0 to 1"),
        (["--class", "cat", "--aug-level", "base=0.5"], "'base', which is not one of the stages sr16"),
        (["--class", "cat", "--consistency", "maybe"], "argument --consistency: 'maybe' is neither on nor off"),
        (["--class", "cat", "--guidance-scale", "nan"], "argument --guidance-scale: 'nan'"),
        (["--class", "cat", "--scheduler", "dpm"], "argument --scheduler: 'dpm' is not one of ddpm, ddim"),
        (["--class", "cat", "--device", "tpu9"], "device is 'tpu9'"),
        (["--class", "cat", "--device", "meta"], "device is 'meta', but this machine has cpu"),
        (["--class", "cat", "--dtype", "int8"], "argument --dtype"),
        (["--class", "cat", "-n", "2", "--out", "one.png"], "2 pictures are asked for; give a folder, or --grid"),
        (["--class", "cat", "--klass", "dog"], "unrecognized arguments: --klass"),
        (["cat", "hot dog"], "cat 'hot dog' has no option before it; classes are given as --class cat --class 'hot dog'"),
        (["--class", "cat", "--out", "x.webp"], "--out is x.webp, and pictures are written as .png, .jpg, .jpeg; choose one"),
        (["--class", "cat", "-n", "2", "--out", "one.jpg"], "2 pictures are asked for; give a folder, or --grid"),
        (["--class"], "argument --class: expected one argument"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_sentence_and_exit_code_2(model, here, capsys, words, problem):
    assert generate([*words, "--model", str(model)]) == 2
    out, err = capsys.readouterr()
    assert problem in err and err.startswith("generate: ")
    assert out == "" and len(err.splitlines()) == 1 and "Traceback" not in err
    assert names(here) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (shutil.rmtree, "there is no model"),
        (lambda folder: (folder / "cascade.json").unlink(), "cascade.json"),
        (lambda folder: (folder / "cascade.json").write_text("{"), "cascade.json"),
        (lambda folder: shutil.rmtree(folder / "sr16"), "sr16"),
        (lambda folder: (folder / "base/unet/config.json").unlink(), "config.json"),
        (
            lambda folder: (folder / "base/unet/diffusion_pytorch_model.safetensors").unlink(),
            "diffusion_pytorch_model.safetensors",
        ),
        (truncated, "diffusion_pytorch_model.safetensors"),
        (with_weight("conv_in.weight", math.nan), "conv_in.weight"),
        (with_weight("conv_in.weight", 0.0, (8, 4, 3, 3)), "conv_in.weight"),
        (misfit, "refines 12 px images, but 'base' before it makes only 8 px"),
    ],
)
def test_a_model_that_is_missing_damaged_or_misfit_is_named(model, here, tmp_path, capsys, change, problem):
    folder = damaged(model, tmp_path / "other", change)
    assert generate(["--class", "cat", "--model", folder]) == 2
    out, err = capsys.readouterr()
    assert problem in err and folder in err
    assert out == "" and len(err.splitlines()) == 1 and "Traceback" not in err
    assert names(here) == []


@pytest.mark.parametrize("name", ["conv_in.weight", "conv_out.weight"])  # NaN; infinite, which the scheduler would clip
def test_weights_that_overflow_are_a_failure(model, here, tmp_path, capsys, name):
    folder = damaged(model, tmp_path / "other", with_weight(name, 1e38))
    assert generate(["--class", "cat", "--model", folder]) == 1
    assert "not numbers" in capsys.readouterr().err and names(here) == []


@pytest.mark.parametrize(
    ("size", "words", "problem"),
    [
        ((8, 6), [], "photo.png is 8x6, expected a square picture; crop it first"),
        ((16, 16), [], "photo.png is 16x16 already"),
        (None, [], "photo.png can't be read as a picture"),
        ((8, 8), ["nothing.png"], "there is no file nothing.png"),
        ((8, 8), ["photo.png"], "two pictures would be written to photo-16.png"),
        ((8, 8), ["--class", "dog", "--class", "cat"], "3 classes are given for 1 pictures"),
        ((8, 8), ["--out", "photo.png"], "photo.png is one of the pictures to enlarge"),
    ],
)  # fmt: skip
def test_a_picture_that_cannot_be_enlarged_is_named(model, here, capsys, size, words, problem):
    if size is None:
        Path("photo.png").write_text("this is no picture")
    else:
        Image.new("RGB", size, "red").save("photo.png")
    before = Path("photo.png").read_bytes()
    assert main(["upscale", "photo.png", "--class", "cat", "--model", str(model), *words]) == 2
    out, err = capsys.readouterr()
    assert problem in err and out == "" and len(err.splitlines()) == 1
    assert names(here) == ["photo.png"] and Path("photo.png").read_bytes() == before


def test_a_file_of_someone_else_is_never_replaced_and_an_own_one_is(model, here, capsys):
    words = ["--class", "cat", "--size", "8", "--model", str(model)]
    Image.new("RGB", (8, 8), "red").save("cat-seed0.png")
    whole = Path("cat-seed0.png").read_bytes()
    for foreign in (whole, whole[:40], b"a text", b""):
        Path("cat-seed0.png").write_bytes(foreign)
        assert generate(words) == 2
        assert "cat-seed0.png exists and was not made by this program" in capsys.readouterr().err
        assert Path("cat-seed0.png").read_bytes() == foreign
    Path("cat-seed0.png").unlink()
    assert generate([*words, "--steps", "1"]) == 0
    first = Path("cat-seed0.png").read_bytes()
    assert generate(words) == 0
    assert Path("cat-seed0.png").read_bytes() != first


def test_a_file_in_the_place_of_the_folder_is_a_mistake(model, here, capsys):
    Path("cats").write_text("")
    assert generate(["--class", "cat", "--model", str(model), "--out", "cats"]) == 2
    assert "cats is a file" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_a_failure_before_anything_is_computed(model, here, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(CascadePipeline, "from_pretrained", lambda *args, **options: pytest.fail("loaded"))
    assert generate(["--class", "cat", "--model", str(model), "--out", "new/folder"]) == 1
    assert "can't be written" in capsys.readouterr().err and names(here) == []


def test_a_full_disk_is_a_failure_that_leaves_no_half_written_file(model, here, capsys, monkeypatch):
    save = Image.Image.save

    def full(image, file, **options):
        file.write(b"\x89PNG half of a picture")
        with open("/dev/full", "wb", buffering=0) as device:
            save(image, device, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    assert generate(["--class", "cat", "--model", str(model)]) == 1
    out, err = capsys.readouterr()
    assert "cat-seed0.png could not be written: No space left on device" in err
    assert out == "" and names(here) == []


def test_ctrl_c_keeps_what_is_complete(model, here, capsys, monkeypatch):
    write = pictures.write

    def second_stops(path, *rest):
        if path.name == "cat-seed1.png":
            raise KeyboardInterrupt
        write(path, *rest)

    monkeypatch.setattr(pictures, "write", second_stops)
    assert generate(["--class", "cat", "-n", "3", "--model", str(model)]) == 1
    assert "stopped" in capsys.readouterr().err and names(here) == ["cat-seed0.png"]


def test_a_defect_of_the_program_is_one_sentence_unless_asked_for(model, here, capsys, monkeypatch):
    monkeypatch.setattr(CascadePipeline, "__call__", lambda self, **options: {}["missing"])
    words = ["--class", "cat", "--model", str(model)]
    assert generate(words) == 1
    err = capsys.readouterr().err
    assert "internal error, KeyError" in err and "CASCADE_TRACEBACK=1" in err
    monkeypatch.setenv("CASCADE_TRACEBACK", "1")
    with pytest.raises(KeyError):
        generate(words)


# A process of its own: start-up and pipes

HEAVY = ("torch", "numpy", "diffusers", "PIL", "yaml", "safetensors")
CALL = f"""
import sys, time
from cascade.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as left:
    code = left.code
heavy = sorted(set({HEAVY}) & set(sys.modules))
print(code, time.process_time(), *heavy, file=sys.stderr)
"""


def in_a_process(*words: str) -> tuple[str, int, float, list[str]]:
    """Output, exit code, CPU seconds and heavy imports of `cascade ...`."""
    done = subprocess.run([sys.executable, "-c", CALL, *words], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    code, seconds, *heavy = done.stderr.splitlines()[-1].split()
    return done.stdout + done.stderr, int(code), float(seconds), heavy


@pytest.mark.parametrize("words", [[], *([command.NAME] for command in COMMANDS)], ids=lambda words: " ".join(words) or "cascade")
def test_help_comes_at_once(words):
    told, code, seconds, heavy = in_a_process(*words, "--help")
    assert code == 0 and told.startswith("usage: cascade") and heavy == []
    assert seconds < 0.5, "the issue's bound, of CPU time, so that a busy machine doesn't fail it"


def test_options_get_through_torchrun():
    """Which takes what it could complete to an option of its own, in Python 3.11 even behind `-m cascade`."""
    from torch.distributed.run import get_args_parser

    launched = ("train", "sample", "evaluate", "benchmark")
    for command in (one for one in COMMANDS if one.NAME in launched):
        parsers = [Parser(prog=command.NAME)]
        command.add_arguments(parsers[0])
        for parser in parsers:
            for action in parser._actions:
                if isinstance(action.choices, dict):
                    parsers += action.choices.values()
                elif action.option_strings:
                    words = ["-m", "cascade", command.NAME, max(action.option_strings, key=len), "x"]
                    assert get_args_parser().parse_args(words).training_script_args == words[2:]


def test_a_mistyped_class_is_answered_before_torch_is_imported(model):
    told, code, _, heavy = in_a_process("generate", "--class", "catt", "--model", str(model))
    assert code == 2 and "unknown class 'catt'" in told and heavy == []


def test_a_reader_that_has_seen_enough_is_no_error():
    program = "import sys; from cascade.cli.main import main; sys.exit(main(['classes', '--imagenet']))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1
    process.stderr.close()
