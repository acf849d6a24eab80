"""Input that was made to hurt, and days on which nothing works: each ends in a sentence, soon and without harm."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
import zlib

import numpy as np
import pyarrow.parquet
import pytest
import torch
from odd_files import chunk
from PIL import Image
from tiny import base, network

from cascade import typed
from cascade.cli.errors import MOST, guarded
from cascade.cli.main import main
from cascade.cli.terminal import put
from cascade.data.numbering import labelled
from cascade.data.shards import ParquetShard
from cascade.eval.images import image_folder
from cascade.eval.references import load_adm_reference
from cascade.eval.statistics import read_npz
from cascade.eval.text import printable
from cascade.png import check_targets, is_ours, read_chunks
from cascade.stages.published import pickle_scan
from cascade.stages.saved import load_stage
from cascade.stages.training import Data, Phase, Recipe
from cascade.stages.training.recipe import Augmentation, Optimization
from cascade.stages.training.start_from import take_weights
from cascade.stages.training.workers import told_in_a_sentence

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"


def recipe(**changes):
    given = {"name": "r", "data": Data(source="none"), "network": {"sample_size": 16}, "phases": (Phase(size=16, images=9),)}
    return Recipe(**given | changes)


def huge_png(*texts):
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10_000_000))
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", head), chunk(b"IDAT", data), *texts, chunk(b"IEND", b"")])


def test_a_picture_starts_no_other_program(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "p.png").write_bytes(EPS)
    with pytest.raises(ValueError, match="is not an image"):
        image_folder(tmp_path)
    assert main(["upscale", str(tmp_path / "p.png"), "--class", "cat"]) == 2
    assert "can't be read as a picture" in capsys.readouterr().err


def test_texts_of_a_picture_are_read_without_its_pixels(tmp_path, capsys):
    text = chunk(b"tEXt", b"Software\0cascade-diffusion \x1b[2J")
    (tmp_path / "p.png").write_bytes(huge_png(text))
    assert is_ours(tmp_path / "p.png") and read_chunks(tmp_path / "p.png") == {"Software": "cascade-diffusion \x1b[2J"}
    assert main(["inspect", str(tmp_path / "p.png")]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["Software  cascade-diffusion \\x1b[2J"]
    with pytest.raises(ValueError, match=r"60,000|pixels"):
        image_folder(tmp_path)


def test_a_pipe_is_never_waited_for(tmp_path, monkeypatch, capsys):
    os.mkfifo(tmp_path / "pipe.png")
    for words in (["inspect", "pipe.png"], ["upscale", "pipe.png", "--class", "cat"], ["train", "pipe.png"]):
        monkeypatch.chdir(tmp_path)
        assert main(words) == 2
        assert "pipe.png" in capsys.readouterr().err


def test_many_targets_are_checked_at_once(tmp_path):
    begun = time.process_time()
    check_targets([tmp_path / f"{i}.png" for i in range(20_000)])
    assert time.process_time() - begun < 2
    with pytest.raises(ValueError, match="two pictures would be written"):
        check_targets([tmp_path / "a.png", tmp_path / "b.png", tmp_path / "a.png"])


NESTED = ()
for _ in range(60):
    NESTED = (NESTED, NESTED)
ITSELF: list = []
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\x80\x02]r\xff\xff\xff\x3f.", "at place 1073741823"),
        (pickle.dumps(NESTED), "a walk through them would not end"),
        (pickle.dumps({"ema": ITSELF}), "holds itself"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0f.", "damaged"),
        (b"0.", "damaged"),
        (b"\x80\x04t.", "damaged"),
    ],
)
def test_a_pickle_is_looked_through_before_it_is_followed(data, problem):
    with pytest.raises(pickle.UnpicklingError, match=problem):
        pickle_scan.check(io.BytesIO(data))


@pytest.mark.parametrize("protocol", range(6))
def test_an_ordinary_pickle_passes(protocol):
    shared = ["a", {"b": (1, 2.5, None)}]
    file = io.BytesIO(pickle.dumps({"x": [shared] * 1000, "y": (shared, {1, 2}), "z": np.float64}, protocol=protocol) + b"rest")
    pickle_scan.check(file)
    assert file.read() == b"rest"


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (600, 1024, 1024)})
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("arr_0.npy", "w") as one,
    ):
        one.write(head.getvalue())
        for _ in range(600):
            one.write(bytes(2**20))
    with pytest.raises(ValueError, match="as no images do"):
        read_npz(tmp_path / "a.npz", {"arr_0"})
    np.savez(tmp_path / "b.npz", arr_0=np.zeros(3))
    cut = (tmp_path / "b.npz").read_bytes().replace(b"(3,)", b"(9,)")
    (tmp_path / "b.npz").write_bytes(cut)
    with pytest.raises(ValueError, match="not a readable"):
        read_npz(tmp_path / "b.npz", {"arr_0"})


def test_a_published_reference_without_images_is_refused(tmp_path):
    arrays = {name: np.zeros(4 if name.startswith("mu") else (4, 4)) for name in ("mu", "sigma", "mu_s", "sigma_s")}
    np.savez(tmp_path / "a.npz", arr_0=np.zeros(4), **arrays)
    with pytest.raises(ValueError, match=r"arr_0 of shape \(4,\), expected RGB images"):
        load_adm_reference(tmp_path / "a.npz", 8)


def test_labels_that_no_set_has_are_refused():
    with pytest.raises(ValueError, match="class 100000000, expected fewer than 1,000,000"):
        labelled(np.array([0, 10**8]), (), "shards")


PICTURE = [b"\x89PNG\r\n\x1a\n" + bytes(99)]


@pytest.mark.parametrize(
    ("pictures", "labels", "told", "problem"),
    [
        ([None] * 10**4, [0] * 10**4, None, "has 10,000 rows in .* bytes, so that most have no picture"),
        ([bytes(10**7)], [0], None, "unpacks from .* bytes to 10,.* as no encoded pictures do"),
        (PICTURE * 20, ["a" * 999, "b"] * 10, None, "has 20 names of classes of up to 999 letters"),
        (PICTURE, [2**64 - 1], None, "not in range"),
        (PICTURE, [0], {"info": {"features": {"label": [True]}}}, "describes its columns in a way that can't be read"),
        (PICTURE, [0], {"info": {"features": {"label": {"names": [1.5], "_type": "ClassLabel"}}}}, "expected names"),
    ],
)
def test_a_parquet_file_that_is_no_set_of_pictures_is_refused_soon(tmp_path, monkeypatch, pictures, labels, told, problem):
    monkeypatch.setattr("cascade.data.shards.MOST_NAME_BYTES", 20 * 4 * 999 - 1)
    kind = pyarrow.uint64() if labels == [2**64 - 1] else None
    table = pyarrow.table({"image": pyarrow.array(pictures, pyarrow.binary()), "label": pyarrow.array(labels, kind)})
    table = table.replace_schema_metadata(told and {"huggingface": json.dumps(told)})
    pyarrow.parquet.write_table(table, tmp_path / "s.parquet", compression="zstd")
    begun = time.process_time()
    with pytest.raises(ValueError, match=problem):
        ParquetShard(tmp_path / "s.parquet", None)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("name", ["/abs", "../../x", "a//b", "a/../b", "", ".", "a\\b", "a\x1b"])
def test_a_recipes_name_stays_in_its_folder(name):
    with pytest.raises(ValueError, match="name is"):
        recipe(name=name)


@pytest.mark.parametrize(
    ("key", "value"),
    [("learning_rate", -1.0), ("learning_rate", float("nan")), ("clip_norm", -1.0), ("ema_half_life", 0), ("ema_half_life", -1),
     ("warmup", -5), ("weight_decay", -0.1), ("ema_ramp", 0.0)],
)  # fmt: skip
def test_values_that_can_not_be_right_are_refused(key, value):
    with pytest.raises(ValueError, match=f"optimization.{key} must be"):
        recipe(optimization=Optimization(**{key: value}))


def test_blur_that_is_no_number_and_batches_of_any_size_are_refused():
    with pytest.raises(ValueError, match="augmentation.blur"):
        recipe(augmentation=Augmentation(blur=float("nan")))
    with pytest.raises(ValueError, match="batch_size must be at most"):
        recipe(phases=(Phase(size=16, images=9, batch_size=10**18),))


def test_yaml_of_many_keys_and_odd_tags_is_answered_soon():
    begun = time.process_time()
    for text in ("a: !!bool x", "a: !!timestamp x", "[" * 5000, "a: !!int x"):
        with pytest.raises(ValueError):
            typed.parsed(text)
    typed.parsed("".join(f"k{i}: {i}\n" for i in range(2000)))
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**9),
        ("unet/config.json", "blocks", [10**9, 1]),
        ("unet/config.json", "channels", ["8", 16]),
        ("model_index.json", "num_inference_steps", "3"),
        ("model_index.json", "guidance_scale", None),
        ("model_index.json", "guidance_interval", 7),
    ],
)
def test_a_stage_of_wrong_values_is_refused_soon(tmp_path, file, key, value):
    base().save_pretrained(tmp_path)
    values = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(values | {key: value}))
    with pytest.raises(ValueError, match="is damaged or can't be used"):
        load_stage(tmp_path)


def test_a_run_starts_from_a_stage_by_the_reader_of_all_stages(tmp_path):
    base().save_pretrained(tmp_path)
    config = tmp_path / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes_4bit"}}))
    fresh = network(seed=5)
    take_weights(fresh, tmp_path)
    assert torch.equal(fresh.conv_in.weight, network().conv_in.weight)


def test_steps_without_width_are_refused_where_a_solver_divides_by_it():
    from diffusers import DPMSolverMultistepScheduler

    stage = base()
    stage.scheduler = DPMSolverMultistepScheduler.from_config(stage.scheduler.config, timestep_spacing="linspace")
    with pytest.raises(ValueError, match="only 999 of these are different; take fewer"):
        stage(0, num_inference_steps=1000)


def test_what_a_worker_raised_is_one_line():
    for error, said in (
        (ValueError("Caught ValueError in DataLoader worker process 0.\nOriginal Traceback:\n  x\nValueError: bad\n"), "bad"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "was killed"),
        (ConnectionResetError("Connection reset by peer"), "was killed"),
    ):  # fmt: skip
        with pytest.raises((ValueError, RuntimeError), match=said) as caught, told_in_a_sentence():
            raise error
        assert "\n" not in str(caught.value)


def test_what_is_printed_obeys_nothing_and_has_an_end(capsys):
    assert printable("\x1b[2J\u202e\ud800\nä🐱") == "\\x1b[2J\\u202e\\ud800\\nä🐱"
    assert printable("a" * 600, MOST) == "a" * (MOST - 3) + "..." and len(printable("\x1b" * 600, MOST)) == MOST

    def fail():
        raise ValueError("\x1b]0;owned\x07" + "a" * 10**7)

    assert guarded("x", fail) == 2
    error = capsys.readouterr().err
    assert len(error) <= MOST + 1 and "\x1b" not in error
    put("a\x1bb", "c")
    assert capsys.readouterr().out == "a\\x1bb\nc\n"


@pytest.mark.parametrize("closing", [">&-", ">&- 2>&-", "| head -c 0"])
def test_no_work_is_lost_by_where_its_result_is_told(tmp_path, closing):
    script = "from cascade.cli.errors import guarded; from cascade.cli.terminal import put; import sys\n"
    script += f"sys.exit(guarded('x', lambda: (put('ä' * 9), open({str(tmp_path / 'done')!r}, 'w').close())))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    words = ["/bin/sh", "-c", f'"$1" -c "$2" {closing}', "sh", sys.executable, script]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
    assert done.returncode == 0


def test_evaluate_looks_for_its_reference_before_it_renders(monkeypatch, capsys):
    monkeypatch.setattr("cascade.measure.named.cached_array", lambda *_, **__: pytest.fail("rendered"))
    assert main(["evaluate", "images", "drawings:heldout", "--reference", "nope"]) == 2
    assert "there is no nope" in capsys.readouterr().err


def test_a_name_that_is_no_text_can_be_written_into_a_picture(tmp_path):
    from cascade import png

    origin = png.Origin("generate --out \udcff", "m\0", ("a",), (0,), (0,), {})
    png.write(tmp_path / "a.png", Image.new("RGB", (2, 2)), origin)
    assert read_chunks(tmp_path / "a.png")["Command"] == "generate --out \\udcff"
