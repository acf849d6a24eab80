"""Sampling runs: the same files to the bit however they were stopped and shared, and what they say of themselves."""

import hashlib
import io
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from tiny import SMALL, base, cascade, network

from cascade import BasePipeline, CascadePipeline
from cascade.costs import cost_of
from cascade.devices import find_device
from cascade.files import held
from cascade.runs import share as shares
from cascade.runs.formats import write_shard
from cascade.runs.plan import Place, RunPlan
from cascade.runs.record import RECORD, begin, check_folder, labels_of_run, model_hash, plan_of, read_record, record_of
from cascade.runs.run import sample_run
from cascade.runs.share import image_name
from cascade.stages.sampling import Run, nfe


def plan(num_images=5, **options):
    return RunPlan(**({"num_images": num_images, "size": 8, "num_classes": 3, "seed": 4} | options))


def started(out, wanted):
    begin(out, record_of(wanted, "tiny", "0" * 64, {"threads": 1}, {}))
    return out


def make_share(tiny, wanted, out, sampling, place):
    return shares.make_share(tiny, wanted, out, sampling, place, lambda done, total: None)


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Killed(BaseException):
    """As a signal would end it: nothing in the code under test may catch it."""


@pytest.fixture(scope="module")
def tiny():
    return cascade(base=base())


def test_labels_follow_the_stated_rules():
    balanced, drawn = plan(9), plan(3000, labels="random")
    assert [balanced.label(i) for i in range(6)] == [0, 1, 2, 0, 1, 2]
    labels = [drawn.label(i) for i in range(3000)]
    digest = hashlib.sha256(b"4/label/17").digest()
    assert labels[17] == int.from_bytes(digest[:8], "big") % 3
    assert min(labels.count(label) for label in range(3)) > 900
    assert [plan(labels=(2, 0)).label(i) for i in range(3)] == [2, 0, 2]
    assert plan(num_classes=None).label(0) is None


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"num_images": 0}, "num_images must be at least 1"),
        ({"format": "jpg"}, "format is 'jpg', expected one of png, shards, npz"),
        ({"labels": "most"}, "labels is 'most'"),
        ({"labels": (0, 3)}, "labels must be classes in 0 to 2"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(options, problem):
    with pytest.raises(ValueError, match=problem):
        plan(**options)


def test_an_image_is_that_of_a_call_with_its_class_and_seed(tiny, tmp_path):
    assert make_share(tiny, plan(), started(tmp_path / "run", plan()), {}, Place())
    made = tiny(class_labels=[0, 1, 2, 0, 1], seeds=[4, 5, 6, 7, 8]).images
    for index, image in enumerate(made):
        with Image.open(tmp_path / "run" / image_name(index)) as read:
            assert np.array_equal(np.asarray(read), np.asarray(image))


@pytest.mark.parametrize("file_format", ["png", "shards", "npz"])
def test_a_run_killed_again_and_again_ends_in_the_same_bytes(tiny, tmp_path, monkeypatch, file_format):
    wanted = plan(7, format=file_format, batch_size=2)
    monkeypatch.setattr(shares, "SHARD_SIZE", 3)
    assert make_share(tiny, wanted, started(tmp_path / "whole", wanted), {}, Place())
    out, save, budget = started(tmp_path / "killed", wanted), Image.Image.save, [0]

    def dies(image, file, **options):
        if budget[0] == 0:
            file.write(b"\x89PNG half of a picture")
            raise Killed
        budget[0] -= 1
        save(image, file, **options)

    monkeypatch.setattr(Image.Image, "save", dies)
    kills = 0
    for allowed in (1, 0, 3, 2, 9):
        budget[0] = allowed
        try:
            assert make_share(tiny, wanted, out, {}, Place(kills % 2, 1 + kills % 2)) or kills % 2
        except Killed:
            kills += 1
            folder = out if file_format == "png" else out / shares.PARTS
            (folder / ".000006.png.partial").write_bytes(b"left by a process that got SIGKILL")
    assert kills == 3
    assert make_share(tiny, wanted, out, {}, Place())
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize("damage", [b"", b"\x89PNG\r\n\x1a\n", "cut", "a bit", "another size"])
def test_an_image_that_is_not_whole_is_made_anew(tiny, tmp_path, damage):
    wanted = plan(3)
    make_share(tiny, wanted, started(tmp_path / "whole", wanted), {}, Place())
    out = started(tmp_path / "damaged", wanted)
    make_share(tiny, wanted, out, {}, Place())
    data = bytearray((out / image_name(1)).read_bytes())
    if damage == "cut":
        damage = data[:-20]
    elif damage == "a bit":
        data[-20] ^= 1
        damage = data
    elif damage == "another size":
        file = io.BytesIO()
        Image.new("RGB", (9, 9)).save(file, "PNG")
        damage = file.getvalue()
    (out / image_name(1)).write_bytes(damage)
    assert make_share(tiny, wanted, out, {}, Place())
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize("file_format", ["shards", "npz"])
def test_a_packed_file_that_is_cut_is_not_taken_for_done(tiny, tmp_path, file_format):
    wanted = plan(3, format=file_format)
    out = started(tmp_path / "run", wanted)
    make_share(tiny, wanted, out, {}, Place())
    before = files(out)
    (packed,) = shares.files_of(out, wanted)
    packed.write_bytes(packed.read_bytes()[:-4000] if file_format == "npz" else b"")
    assert make_share(tiny, wanted, out, {}, Place()) and files(out) == before


def test_of_two_commands_in_one_folder_one_is_told_to_wait(tiny, tmp_path):
    sample_run(tiny, tmp_path / "run", num_images=1, size=8)
    with held(tmp_path / "run" / ".lock-0", ""), pytest.raises(ValueError, match="another process is making the images of"):
        sample_run(tiny, tmp_path / "run", num_images=1, size=8)
    sample_run(tiny, tmp_path / "run", num_images=1, size=8)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["000000.png", "run.json"]


def test_progress_is_told_once_for_what_is_made_and_once_for_a_finished_run(tiny, tmp_path):
    wanted, told = plan(4), []
    out = started(tmp_path / "run", wanted)
    for _ in range(2):
        shares.make_share(tiny, wanted, out, {}, Place(), lambda *step: told.append(step))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4), (4, 4)]


@pytest.mark.parametrize("file_format", ["png", "npz"])
def test_two_processes_make_what_one_makes(tiny, tmp_path, file_format):
    wanted = plan(5, format=file_format, batch_size=2)
    make_share(tiny, wanted, started(tmp_path / "one", wanted), {}, Place())
    out = started(tmp_path / "two", wanted)
    assert not make_share(tiny, wanted, out, {}, Place(1, 2)), "its share alone is not all"
    assert make_share(tiny, wanted, out, {}, Place(0, 2))
    assert files(out) == files(tmp_path / "one")


def test_a_finished_run_makes_nothing(tiny, tmp_path, monkeypatch):
    wanted = plan(2, format="npz")
    out = started(tmp_path / "run", wanted)
    make_share(tiny, wanted, out, {}, Place())
    monkeypatch.setattr(type(tiny), "__call__", lambda *args, **options: pytest.fail("sampled again"))
    before = files(out)
    assert make_share(tiny, wanted, out, {}, Place()) and files(out) == before


SCRIPT = """
import sys
from cascade import CascadePipeline
from cascade.runs.run import sample_run
from diffusers import DDIMScheduler

cascade = CascadePipeline.from_pretrained(sys.argv[1])
sampling = cascade.sampling(scheduler={"base": DDIMScheduler}, guidance_interval={"base": (0.1, 5)})
run = sample_run(cascade, "run", num_images=4, size=8, sampling=sampling, processes=2)
print(run.complete, *[path.name for path in run.files])
cascade.stages["base"].register_to_config(num_inference_steps=1)
sample_run(cascade, "changed", num_images=40, size=8, processes=2)
"""


def test_a_script_needs_no_main_guard_and_a_model_that_was_changed_is_not_shared(tmp_path):
    cascade().save_pretrained(tmp_path / "tiny")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py", "tiny"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "True 000000.png 000001.png 000002.png 000003.png\n" and done.returncode == 1
    assert "the cascade was changed since it was loaded, stages.base.num_inference_steps 1, not 3" in done.stderr
    loaded = CascadePipeline.from_pretrained(tmp_path / "tiny")
    sampling = loaded.sampling(scheduler={"base": "ddim"}, guidance_interval={"base": (0.1, 5)})
    told, options = [], {"num_images": 4, "size": 8, "processes": 1, "sampling": sampling}
    alone = sample_run(loaded, tmp_path / "alone", **options, on_progress=lambda *one: told.append(one))
    assert files(alone.folder) == files(tmp_path / "run") and alone.labels == [0, 1, 2, 0]
    assert told == [("sampling images", done, 4) for done in (0, 1, 2, 3, 4)]


def test_a_composed_cascade_runs_in_this_process_and_is_known_by_what_it_would_be_saved_as(tiny, tmp_path):
    made = sample_run(tiny, tmp_path / "run", num_images=2, format="npz")
    assert made.complete and [path.name for path in made.files] == ["samples_2x8x8x3.npz"] and made.files[0].is_file()
    with pytest.raises(ValueError, match="processes is 2, but the cascade was composed here"):
        sample_run(tiny, tmp_path / "two", num_images=2, processes=2)
    assert not (tmp_path / "two").exists()
    tiny.save_pretrained(tmp_path / "tiny")
    assert made.record["model"]["sha256"] == model_hash(tmp_path / "tiny")


def test_npz_is_what_openais_evaluator_reads(tiny, tmp_path):
    wanted = plan(4, format="npz")
    make_share(tiny, wanted, started(tmp_path / "npz", wanted), {}, Place())
    images = plan(4)
    make_share(tiny, images, started(tmp_path / "png", images), {}, Place())
    with np.load(tmp_path / "npz" / "samples_4x8x8x3.npz", allow_pickle=False) as archive:
        assert archive["arr_0"].dtype == np.uint8 and archive["arr_0"].shape == (4, 8, 8, 3)
        assert archive["arr_1"].tolist() == [0, 1, 2, 0]
        for index, pixels in enumerate(archive["arr_0"]):
            assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "png" / image_name(index))))


def test_a_shard_holds_images_beside_their_classes_and_no_trace_of_the_machine(tmp_path):
    for name in ("000000.png", "000001.png"):
        (tmp_path / name).write_bytes(name.encode())
    items = [(tmp_path / "000000.png", 2), (tmp_path / "000001.png", 0)]
    shard = io.BytesIO()
    write_shard(shard, items)
    with tarfile.open(fileobj=io.BytesIO(shard.getvalue())) as archive:
        members = archive.getmembers()
        assert [m.name for m in members] == ["000000.png", "000000.cls", "000001.png", "000001.cls"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
        assert archive.extractfile("000000.cls").read() == b"2"


def test_a_folder_of_another_run_or_of_something_else_is_refused(tmp_path):
    out = started(tmp_path / "run", plan())
    begin(out, record_of(plan(), "tiny", "0" * 64, {"threads": 1}, {"base": {"nfe": 3}}))  # its cost decides nothing
    with pytest.raises(ValueError, match="holds a run with plan.seed 4, not 5"):
        begin(out, record_of(plan(seed=5), "tiny", "0" * 64, {"threads": 1}, {}))
    with pytest.raises(ValueError, match="settings.threads 1, not 2"):
        begin(out, record_of(plan(), "tiny", "0" * 64, {"threads": 2}, {}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.doc").touch()
    with pytest.raises(ValueError, match="holds no sampling run"):
        check_folder(tmp_path / "other")
    (out / RECORD).write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        read_record(out)


def test_labels_of_a_run_are_read_from_its_record(tmp_path):
    assert labels_of_run(started(tmp_path / "run", plan())) == [0, 1, 2, 0, 1]
    assert plan_of(read_record(tmp_path / "run")) == plan()
    with pytest.raises(ValueError, match="holds no run.json"):
        labels_of_run(tmp_path)


def test_a_models_hash_depends_on_its_weights_and_not_on_its_card(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    before = model_hash(tmp_path)
    (tmp_path / "README.md").write_text("# Card")
    assert model_hash(tmp_path) == before
    (tmp_path / "a.safetensors").write_bytes(b"weightz")
    assert model_hash(tmp_path) != before


@pytest.mark.parametrize("values", [("1", "1"), ("x", "2")])
def test_an_environment_that_cannot_be_is_refused(monkeypatch, values):
    monkeypatch.setenv("RANK", values[0])
    monkeypatch.setenv("WORLD_SIZE", values[1])
    with pytest.raises(ValueError, match="RANK below WORLD_SIZE"):
        Place.from_environment()


def test_each_process_of_torchrun_has_an_accelerator_of_its_own(monkeypatch):
    facts = {"is_available": True, "current_accelerator": torch.device("cuda"), "device_count": 4}
    for name, value in facts.items():
        monkeypatch.setattr(torch.accelerator, name, lambda value=value: value)
    assert find_device() == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert find_device() == torch.device("cuda:2") and find_device("cpu") == torch.device("cpu")


def test_cost_counts_evaluations_and_multiply_adds(tiny):
    both = cascade()
    cost = cost_of(both, 16, both.sampling(guidance_scale={"base": 2.0}))
    assert {name: stage["nfe"] for name, stage in cost.items()} == {"base": 2 * 3, "sr16": 2}
    steps = {name: nfe(stage.scheduler, stage.config["num_inference_steps"]) for name, stage in both.stages.items()}
    assert steps["base"] == 3
    one = cost_of(tiny, 8, tiny.sampling(num_inference_steps=1))["base"]["multiply_adds"]
    assert cost_of(tiny, 8, tiny.sampling(num_inference_steps=7))["base"]["multiply_adds"] == 7 * one
    unet = network(**{**SMALL, "channels": (8,), "blocks": (1,)})
    first = unet.conv_in  # 3 x 3 from 3 to 8 channels at every of 8 x 8 places, the smallest part of it
    assert one > first.weight.numel() * 64
    made = tiny(class_labels=[0], seeds=[1], output_type="np").images
    assert made.std() > 0, "the network is itself again"


def test_an_evaluation_at_half_the_size_costs_what_it_does():
    config = {"sample_size": 16, "prediction_type": "sample"}

    def cost(below, steps):
        stage = BasePipeline(network(**config, coarse_below=below), DDIMScheduler(prediction_type="sample"))
        made = cascade(base=stage)
        return cost_of(made, 16, made.sampling(num_inference_steps=steps))["base"]["multiply_adds"]

    whole, half = cost(-30.0, 1), cost(30.0, 1)
    assert whole > 3 * half > 0
    levels = Run.of(DDIMScheduler(prediction_type="sample"), 8).log_snr
    coarse = int((levels < 1.0).sum())
    assert 0 < coarse < 8 and cost(1.0, 8) == coarse * half + (8 - coarse) * whole
