"""Parts of data sets are never classes, what is held out is never trained on, and shards are read or refused by name."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from cascade.cli.main import main
from cascade.data import class_names, held_out_source, open_held_out, open_pictures
from cascade.data.folder import Folder, Part, held_out_places, splits
from cascade.data.shards import expanded
from cascade.stages.training import Data


def picture(seed: int = 0, size: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def folder_of(root, counts, size=8):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(i, size).save(root / name / f"{name}-{i}.png")
    return root


def test_the_parts_of_an_image_folder_are_parts_and_never_classes(tmp_path):
    for part in ("train", "test"):
        folder_of(tmp_path / part, {"cat": 2, "dog": 1})
    data = Data(source=str(tmp_path))
    assert class_names(data) == ("cat", "dog")
    assert len(open_pictures(data, 8)) == 3
    assert held_out_source(data.source) == str(tmp_path / "test")
    folder_of(tmp_path / "validation", {"cat": 1, "dog": 1})
    assert held_out_source(data.source) == str(tmp_path / "validation"), "what tests are for is not looked at"
    held_out = open_held_out(data, None, open_pictures(data, 8))
    assert {held_out.name(i) for i in range(len(held_out))} == {str(p) for p in (tmp_path / "validation").rglob("*.png")}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["train", "val"], {"train": "train", "validation": "val"}),
        (["training", "valid", "testing"], {"train": "training", "validation": "valid", "test": "testing"}),
        (["train", "bus"], {}),
        (["cat", "test"], {}),
    ],
)
def test_folders_are_parts_if_all_of_them_are_named_so(tmp_path, names, found):
    for name in names:
        (tmp_path / name).mkdir()
    assert {part: path.name for part, path in splits(tmp_path).items()} == found


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["test", "val"], "holds test and val, parts of a data set but none to train on"),
        (["train", "val", "dev"], "holds both val and dev, two folders of one part"),
    ],
)
def test_parts_that_say_nothing_clear_are_refused_by_name(tmp_path, names, problem):
    for name in names:
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=problem):
        splits(tmp_path)


def test_a_share_of_every_class_is_held_out_and_the_rest_is_trained_on(tmp_path):
    folder_of(tmp_path, {"ant": 20, "bee": 5, "cow": 4})
    data = Data(source=str(tmp_path), hold_out=0.2)
    trained = open_pictures(data, 8)
    held_out = open_held_out(data, None, trained)
    names = [{source.name(i) for i in range(len(source))} for source in (trained, held_out)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 29
    assert np.bincount([held_out.label(i) for i in range(len(held_out))], minlength=3).tolist() == [4, 1, 0]
    assert held_out.class_names == trained.class_names == ("ant", "bee", "cow")
    for source in (trained, held_out):
        assert sorted(source.order(7, 2).tolist()) == list(range(len(source))), "an epoch meets every picture once"


def test_what_is_held_out_depends_on_names_alone_and_stays_where_pictures_are_added(tmp_path):
    folder_of(tmp_path / "a", {"ant": 20})
    before = Folder(tmp_path / "a")
    chosen = {before.name(i).rsplit("/", 1)[1] for i in held_out_places(before, 0.2)}
    folder_of(tmp_path / "b", {"ant": 20, "bee": 30})
    after = Folder(tmp_path / "b")
    assert {name for i in held_out_places(after, 0.2) if (name := after.name(i).rsplit("/", 1)[1]).startswith("ant")} == chosen


def test_a_part_keeps_the_order_of_the_whole(tmp_path):
    whole = Folder(folder_of(tmp_path, {"ant": 9}))
    part = Part(whole, np.array([1, 4, 5, 8]))
    order = whole.order(3, 1)
    assert part.places[part.order(3, 1)].tolist() == [i for i in order.tolist() if i in (1, 4, 5, 8)]


def test_nothing_to_hold_out_is_told(tmp_path):
    data = Data(source=str(folder_of(tmp_path, {"ant": 2, "bee": 4})), hold_out=0.1)
    with pytest.raises(ValueError, match="holds nothing out: no class .* has 5 pictures"):
        open_held_out(data, None, open_pictures(data, 8))


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("a-{000..002}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("{x,y}-{0..1}.tar", ["x-0.tar", "x-1.tar", "y-0.tar", "y-1.tar"]),
        ("a-{b}.tar", ["a-{b}.tar"]),
        ("a.tar", ["a.tar"]),
    ],
)
def test_braces_are_expanded_as_a_shell_does(pattern, files):
    assert expanded(pattern) == files


def test_braces_that_mean_too_many_files_are_refused():
    with pytest.raises(ValueError, match="stands for 1,000,000,000 files"):
        expanded("a-{000000000..999999999}.tar")


def shard(path, samples):
    """A tar file of samples: for each, the members beside its picture."""
    with tarfile.open(path, "w") as tar:
        for key, beside in samples.items():
            content = io.BytesIO()
            picture().save(content, "PNG")
            for name, data in {f"{key}.png": content.getvalue(), **beside}.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_shards_with_labels_in_json_and_named_by_braces_are_read(tmp_path, cache):
    for number in range(2):
        samples = {f"{i}": {f"{i}.json": json.dumps({"label": i}).encode()} for i in range(3)}
        shard(tmp_path / f"{number:03}.tar", samples)
    found = open_pictures(Data(source=str(tmp_path / "{000..001}.tar")), 8)
    assert [found.label(i) for i in range(len(found))] == [0, 1, 2, 0, 1, 2]
    with pytest.raises(ValueError, match="there is no file .*002.tar"):
        open_pictures(Data(source=str(tmp_path / "{000..002}.tar")), 8)


def test_the_key_of_the_class_is_named_where_several_may_be_it(tmp_path, cache):
    shard(tmp_path / "a.tar", {"0": {"0.json": b'{"label": 1, "category": "cat"}'}})
    with pytest.raises(ValueError, match="label, category, any of which may be the class"):
        open_pictures(Data(source=str(tmp_path / "a.tar")), 8)
    assert open_pictures(Data(source=str(tmp_path / "a.tar"), label="category"), 8).class_names == ("cat",)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"[1]", "not a JSON object"), (b"{", "is not JSON"), (b'{"caption": "a cat"}', "lacks its class")],
)
def test_json_without_a_class_is_refused_by_name(tmp_path, cache, content, problem):
    shard(tmp_path / "a.tar", {"0": {"0.json": content}})
    with pytest.raises(ValueError, match=problem) as told:
        open_pictures(Data(source=str(tmp_path / "a.tar")), 8)
    assert "a.tar" in str(told.value)


def test_parquet_that_holds_paths_is_refused_by_name(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    rows = pyarrow.array([{"bytes": None, "path": "cat/1.png"}], kind)
    parquet.write_table(pyarrow.table({"image": rows, "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="column 'image' of .*a.parquet holds paths of pictures, not the pictures"):
        open_pictures(Data(source=str(tmp_path / "a.parquet")), 8)
    parquet.write_table(pyarrow.table({"file": ["cat/1.png"], "label": [0]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="column 'file' of .*b.parquet holds names of files"):
        open_pictures(Data(source=str(tmp_path / "b.parquet")), 8)


def test_data_check_prints_the_names_and_counts_of_classes_and_which_part_it_read(tmp_path, capsys):
    folder_of(tmp_path / "train", {"cat": 3, "red fox": 1})
    folder_of(tmp_path / "val", {"cat": 1, "red fox": 1})
    assert main(["data", "check", str(tmp_path), "--size", "8", "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'train'}, the part of {tmp_path} to train on; {tmp_path / 'val'} is held out" in printed
    lines = [line.split() for line in printed.splitlines()]
    assert ["cat", "3"] in lines and ["red", "fox", "1"] in lines
