"""The emoji drawings: the facts of the pack, the pixels of the renders, and what lands on the disk."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from cascade.classes import EMOJI
from cascade.data import drawings as module
from cascade.data.drawings import (
    MAY_FLIP,
    area_average,
    cached_array,
    drawings,
    glyphs,
    notice,
    render,
    write_image_folder,
)

ROOT = Path(__file__).parents[2]

# sha256 (first 16 digits) of the 256 px pictures of every 40th held-out drawing of each set, by resvg 0.5.0.
PICTURES = {
    "emojione": "a3f0c7984f7bfebc",
    "fluent-emoji": "6ee79e83ed0a4355",
    "fluent-emoji-flat": "3fb84e6b0662e67b",
    "fxemoji": "62f286c3a0e199d9",
    "noto": "c2635a519066f06a",
    "noto-v1": "68a2b7757727ffc4",
    "streamline-emojis": "3dd8b2ad219bdf33",
    "twemoji": "15f86b5d9f2a4711",
}
BLACK_LEFT_HALF = '<svg xmlns="http://www.w3.org/2000/svg" width="2" height="2"><path d="M0 0H1V2H0z" fill="#000"/></svg>'


@pytest.fixture(scope="module")
def train():
    return drawings("train")


@pytest.fixture(scope="module")
def heldout():
    return drawings("heldout")


@pytest.fixture
def four(heldout, monkeypatch, tmp_path):
    """A pack of four drawings to hold out and two to train on, so that rendering a whole split takes a moment."""
    splits = {"heldout": heldout[::250], "train": [replace(drawing, split="train") for drawing in heldout[1:3]]}
    monkeypatch.setattr(module, "drawings", splits.__getitem__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return splits["heldout"]


def concept(code_points: str) -> tuple[int, ...]:
    """Code points less skin tone, gender, hair, direction and joiners."""
    dropped = {*range(0x1F3FB, 0x1F400), *range(0x1F9B0, 0x1F9B4), 0x2640, 0x2642, 0x200D, 0xFE0F, 0x27A1, 0x2B05}
    person = {0x1F468: 0x1F9D1, 0x1F469: 0x1F9D1}
    points = [int(point, 16) for point in code_points.split("-")]
    return tuple(person.get(point, point) for point in points if point not in dropped)


def test_counts(train, heldout):
    assert (len(train), len(heldout)) == (8747, 991)
    both = train + heldout
    assert len({drawing.svg for drawing in both}) == 9738
    assert {drawing.name.split("__")[0] for drawing in both} == set(PICTURES)
    counts = [sum(drawing.class_name == name for drawing in both) for name in EMOJI.names]
    assert (min(counts), max(counts), sum(counts)) == (42, 300, 9738)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_order_is_that_of_a_sorted_image_folder(split, request):
    files = [(drawing.class_name, f"{drawing.name}.svg") for drawing in request.getfixturevalue(split)]
    assert files == sorted(files)
    assert len(set(files)) == len(files)
    assert list(dict.fromkeys(name for name, _ in files)) == list(EMOJI.names)


def test_no_concept_is_on_both_sides_of_the_split(train, heldout):
    seen = {concept(drawing.name.split("__")[1]) for drawing in train}
    unseen = {concept(drawing.name.split("__")[1]) for drawing in heldout}
    assert concept("1f469-1f3fd-200d-1f9b0") == concept("1f468")  # a red-haired woman, a man: one concept
    assert not seen & unseen


def test_area_average_keeps_means_and_constants():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
    blocks = pictures.reshape(2, 4, 3, 4, 3, 3).astype(float).mean(axis=(2, 4))
    np.testing.assert_array_equal(area_average(pictures, 4), np.floor(blocks + 0.5))
    np.testing.assert_array_equal(area_average(pictures, 12), pictures)
    np.testing.assert_array_equal(area_average(np.full((7, 7, 3), 201, np.uint8), 3), 201)


def test_area_average_where_areas_cut_pixels():
    row = np.array([0, 90, 240], np.uint8)
    picture = np.broadcast_to(row[None, :, None], (3, 3, 3))
    # Two pixels from three: each covers one pixel and half of the middle one.
    np.testing.assert_array_equal(area_average(picture, 2)[0, :, 0], [(0 + 45) / 1.5, (45 + 240) / 1.5])


def test_render_known_picture():
    expected = np.full((256, 256, 3), 255, np.uint8)
    expected[:, :128] = 0
    np.testing.assert_array_equal(render(BLACK_LEFT_HALF, 256), expected)
    np.testing.assert_array_equal(render(BLACK_LEFT_HALF, 3)[0, :, 0], [0, 128, 255])  # 127.5 rounds up


@pytest.mark.parametrize("width, height", [(4, 2), (2, 4)])
def test_what_is_not_square_is_centred_on_white(width, height):
    picture = render(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
                     f'<path d="M0 0H9V9H0z"/></svg>', 256)  # fmt: skip
    black = (picture == 0).all(axis=2)
    assert (black.any(axis=0).sum(), black.any(axis=1).sum()) == (64 * width, 64 * height)
    np.testing.assert_array_equal(picture, picture[::-1, ::-1])


@pytest.mark.parametrize("set_name", sorted(PICTURES))
def test_same_picture_on_every_machine(set_name, heldout):
    digest = hashlib.sha256()
    for drawing in [drawing for drawing in heldout if drawing.name.startswith(f"{set_name}__")][::40]:
        digest.update(render(drawing.svg, 256).tobytes())
    assert digest.hexdigest()[:16] == PICTURES[set_name]


def test_small_pictures_come_from_the_large_render(heldout):
    large = render(heldout[0].svg, 256)
    np.testing.assert_array_equal(render(heldout[0].svg, 64), area_average(large, 64))
    assert render(heldout[0].svg, 300).shape == (300, 300, 3)


def test_flips():
    flips = dict(zip(EMOJI.names, MAY_FLIP, strict=True))
    assert sum(MAY_FLIP) == 75 - 15  # each name in the list of those that don't flip is a class
    assert flips["cat"] and not flips["clock"] and not flips["play-button"]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: drawings("test"), "split is 'test', expected one of train, heldout"),
        (lambda: render(BLACK_LEFT_HALF, 0), "size is 0, expected 1 to 4096"),
        (lambda: render(BLACK_LEFT_HALF, 4097), "size is 4097"),
        (lambda: render("<p>no drawing</p>", 64), "SVG"),
        (lambda: area_average(np.zeros((8, 8, 3), np.float32), 4), "float32"),
        (lambda: area_average(np.zeros((8, 4, 3), np.uint8), 4), "expected uint8"),
        (lambda: area_average(np.zeros((8, 8, 3), np.uint8), 9), "size is 9, expected 1 to 8"),
    ],
)
def test_wrong_requests(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_damaged_pack(tmp_path, monkeypatch):
    pack = tmp_path / "drawings.tar.xz"
    pack.write_bytes(module._PACK.read_bytes()[:100_000])
    monkeypatch.setattr(module, "_PACK", pack)
    with pytest.raises(ValueError, match="damaged"):
        drawings("train")


def test_cache_is_rendered_once_and_repaired(four, tmp_path, monkeypatch):
    steps = []
    pictures, labels = cached_array(32, "heldout", progress=lambda *step: steps.append(step))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    np.testing.assert_array_equal(pictures, [render(drawing.svg, 32) for drawing in four])
    assert [EMOJI.names[label] for label in labels] == [drawing.class_name for drawing in four]
    assert (labels.dtype, pictures.dtype, pictures.flags.writeable) == (np.int64, np.uint8, False)

    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]  # one file, and nothing temporary
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_in_processes", lambda *_: pytest.fail("rendered although it is in the cache"))
        cached_array(32, "heldout")
    os.truncate(path, len(before) - 1)  # maps of the old file are not read again below
    monkeypatch.setattr(module, "_in_processes", map)
    cached_array(32, "heldout")
    assert path.read_bytes() == before


def test_small_cache_from_the_large_one_has_the_same_pixels(four, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_in_processes", map)
    small, _ = cached_array(64, "heldout")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "averaged"))
    cached_array(256, "heldout")
    monkeypatch.setattr(module, "_in_processes", lambda *_: pytest.fail("rendered again"))
    again, _ = cached_array(64, "heldout")
    np.testing.assert_array_equal(small, again)


def test_every_nth_drawing_has_a_cache_of_its_own(four, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_in_processes", map)
    every, labels = cached_array(8, "heldout")
    second, its_labels = cached_array(8, "heldout", every=2)
    np.testing.assert_array_equal(second, every[::2])
    np.testing.assert_array_equal(its_labels, labels[::2])
    assert len(cached_array(8, "heldout", every=3)[0]) == 2
    with pytest.raises(ValueError, match="every is 0"):
        cached_array(8, "heldout", every=0)


def test_cache_lies_where_the_desktop_says(four, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_in_processes", map)
    cached_array(8, "heldout")
    assert len(list((tmp_path / "cache" / "cascade-diffusion").rglob("heldout-8.npy"))) == 1


def test_stopped_or_full_leaves_nothing(four, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_in_processes", map)
    with pytest.raises(KeyboardInterrupt):
        cached_array(8, "heldout", progress=stop)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(OSError, match="left"):
        cached_array(8, "heldout")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_killed_rendering_leaves_no_process_and_its_file_only_until_the_next(tmp_path):
    script = tmp_path / "render.py"
    script.write_text(
        "from cascade.data.drawings import cached_array\n"
        "if __name__ == '__main__':\n"
        "    cached_array(256, 'heldout', lambda done, total: print(done, flush=True))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment)
    process.stdout.readline()
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert family and psutil.wait_procs(family, timeout=20)[1] == []
    (folder,) = tmp_path.glob("cascade-diffusion/drawings-*")
    (left,) = folder.glob(".heldout-256.npy.*")
    module._write_array(folder / "heldout-256.npy", (1, 1), [np.zeros(1, np.uint8)])
    assert not left.exists() and (folder / "heldout-256.npy").exists()


def test_image_folder(four, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_in_processes", lambda function, items, chunksize: map(function, items))
    out = tmp_path / "pictures"
    assert write_image_folder(out, 32) == 6
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert files[:4] == [f"heldout/{drawing.class_name}/{drawing.name}.png" for drawing in four]
    with Image.open(out / files[0]) as image:
        np.testing.assert_array_equal(np.asarray(image), render(four[0].svg, 32))
    assert (out / "NOTICE").read_text("utf-8") == notice()
    assert sorted(path.name for path in out.iterdir()) == ["NOTICE", "drawings.json", "heldout", "train"]


def test_image_folder_goes_on_where_it_stopped(four, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_in_processes", lambda function, items, chunksize: map(function, items))
    write_image_folder(tmp_path, 16, "heldout")
    kept, lost, empty, *_ = sorted(tmp_path.rglob("*.png"))
    old, content = kept.stat().st_mtime_ns, empty.read_bytes()
    lost.unlink()
    empty.write_bytes(b"")
    steps = []
    assert write_image_folder(tmp_path, 16, "heldout", progress=lambda *step: steps.append(step)) == 4
    assert steps == [(2, 2)] and empty.read_bytes() == content
    assert lost.exists() and kept.stat().st_mtime_ns == old
    with pytest.raises(ValueError, match="another size"):
        write_image_folder(tmp_path, 32, "heldout")
    assert json.loads((tmp_path / "drawings.json").read_text())["size"] == 16


def test_image_folder_goes_on_where_it_was_killed_before_its_first_file(four, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_in_processes", lambda function, items, chunksize: map(function, items))
    (tmp_path / ".drawings.json.partial").write_text("{")
    assert write_image_folder(tmp_path, 16, "heldout") == 4
    assert not (tmp_path / ".drawings.json.partial").exists()


def test_image_folder_spares_what_is_not_its_own(four, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        write_image_folder(tmp_path, 16)
    with pytest.raises(ValueError, match="is a file"):
        write_image_folder(tmp_path / "thesis.txt", 16)
    with pytest.raises(ValueError, match="size is 0"):
        write_image_folder(tmp_path / "new", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_notice_names_every_set_and_licence():
    text = notice()
    assert all(set_name in text for set_name in PICTURES)
    assert all(licence in text for licence in ("Apache-2.0", "creativecommons.org/licenses/by/4.0", "AS IS"))
    assert text in (ROOT / "NOTICE").read_text("utf-8")


def test_the_glyphs_of_a_split_are_the_code_points_of_its_drawings(heldout):
    found = glyphs("heldout")
    names = [drawing.name for drawing in heldout]
    assert len(found) == 991 and 1 < len(set(found)) < 991
    assert all(f"__{glyph}__" in name for glyph, name in zip(found, names, strict=True))
