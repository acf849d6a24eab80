"""Sources of pictures: the same ones from folders, tar and parquet shards and the Hub; orders; labels."""

import io
import json
import pickle
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import datasets as hub_datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import webdataset
from huggingface_hub.errors import RepositoryNotFoundError
from odd_files import photo, write_photos
from torch.utils.data import DataLoader

from cascade import data as datasets
from cascade.classes import imagenet
from cascade.data import class_names, open_held_out, open_pictures, shards
from cascade.data.folder import Photos
from cascade.stages.training import Data, Phase, Recipe, TrainingExamples
from cascade.stages.training.examples import as_read
from cascade.stages.training.odd_pictures import DamagedPicture, Oddity

SIZE = 16
IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A user's caches of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "copies")
    return tmp_path / "cache" / "cascade-diffusion" / "datasets"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures") / "set"
    write_photos(root, 30, ("ant", "bee", "cow"))
    return root


def pictures_of(folder: Path) -> list[tuple[Path, int]]:
    """Files and labels in the order of a folder."""
    return [(path, label) for label, one in enumerate(sorted(folder.iterdir())) for path in sorted(one.iterdir())]


def write_tars(folder: Path, out: Path, per_shard: int, label=str) -> str:
    """Shards written by WebDataset's own writer; their pattern."""
    out.mkdir()
    with webdataset.ShardWriter(f"{out}/%04d.tar", maxcount=per_shard, verbose=0) as writer:
        for path, number in pictures_of(folder):
            writer.write({"__key__": path.stem, path.suffix[1:]: path.read_bytes(), "cls": label(number).encode()})
    return f"{out}/*.tar"


def write_parquet(folder: Path, out: Path, per_shard: int, label=int, described=("ant", "bee", "cow"), rows: int = 4) -> str:
    """Shards as the Hub has them, in row groups of a few rows."""
    out.mkdir()
    items = pictures_of(folder)
    schema = pyarrow.schema([("image", IMAGE), ("label", pyarrow.int64() if label is int else pyarrow.string())])
    if described:
        features = {"image": {"_type": "Image"}, "label": {"names": list(described), "_type": "ClassLabel"}}
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for shard in range(-(-len(items) // per_shard)):
        part = items[shard * per_shard : (shard + 1) * per_shard]
        columns = {
            "image": [{"bytes": path.read_bytes(), "path": path.name} for path, _ in part],
            "label": [label(number) for _, number in part],
        }
        table = pyarrow.table(columns, schema=schema)
        pyarrow.parquet.write_table(table, out / f"train-{shard:05}.parquet", row_group_size=rows)
    return f"{out}/train-*.parquet"


def recipe(source: str, **data) -> Recipe:
    phases = (Phase(size=8, images=100, batch_size=4),)
    return Recipe(
        name="t", data=Data(source=source, **data), network={"sample_size": SIZE, "low_res_size": 4}, phases=phases, seed=5
    )


def examples(source: str, **data) -> TrainingExamples:
    r = recipe(source, **data)
    return TrainingExamples(open_pictures(r.data, SIZE), r, r.phases[0], 3)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("write", [write_tars, write_parquet])
def test_shards_and_a_folder_give_identical_examples_to_the_bit(folder, tmp_path, write):
    """In one shard also the order is that of the folder."""
    pattern = write(folder, tmp_path / "shards", 1000)
    from_folder, from_shards = examples(str(folder)), examples(pattern)
    for number in range(65):  # more than two epochs
        assert same(from_folder[number], from_shards[number])
    assert len(class_names(Data(source=pattern))) == 3


@pytest.mark.parametrize("write", [write_tars, write_parquet])
def test_many_shards_hold_the_pictures_of_the_folder(folder, tmp_path, write):
    pattern = write(folder, tmp_path / "shards", 7)
    whole, parts = open_pictures(Data(source=str(folder)), SIZE), open_pictures(Data(source=pattern), SIZE)
    assert len(parts) == len(whole) == 30
    for index in (0, 6, 7, 13, 14, 29, 28, 1):
        assert np.array_equal(parts.read(index).pixels, whole.read(index).pixels)
        assert parts.label(index) == whole.label(index)
        assert f"000{index // 7}" in parts.name(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_examples_are_a_function_of_their_number_whoever_reads_them(folder, tmp_path, workers):
    """Data workers, a resume in the middle, and a first use in the middle change nothing."""
    pattern = write_parquet(folder, tmp_path / "shards", 7)
    one_by_one = [examples(pattern)[n] for n in range(20, 40)]
    made = examples(pattern)
    loader = DataLoader(made, batch_size=5, sampler=range(20, 40), num_workers=workers, collate_fn=as_read)
    batches = [made.complete(batch) for batch in loader]
    assert len(batches) == 4
    for place, batch in enumerate(batches):
        for key, values in batch.items():
            assert torch.equal(values, torch.stack([one_by_one[5 * place + i][key] for i in range(5)]))


def ranks(counts: list[int], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """An order of shards of these many pictures, and the shard of each place."""
    found = shards.ShardSet.__new__(shards.ShardSet)
    found.shards, found.labels, found.firsts = (None,) * len(counts), np.zeros(sum(counts)), np.cumsum([0, *counts])
    order = found.order(seed, epoch)
    return order, np.searchsorted(found.firsts, order, side="right") - 1


def test_an_epoch_of_shards_is_a_permutation_of_its_own():
    for counts in ([5], [1, 1, 1], [100, 3, 50, 0, 7], [40] * 60):
        orders = [ranks(counts, seed, epoch)[0] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
        assert all(sorted(order) == list(range(sum(counts))) for order in orders)
        assert np.array_equal(orders[0], ranks(counts, 0, 0)[0])
        assert sum(counts) < 10 or not any(np.array_equal(orders[0], other) for other in orders[1:])


def test_shards_are_needed_one_after_the_other_and_mixed_in_between():
    order, shard = ranks([100] * 200, seed=3, epoch=0)
    first = np.array([np.flatnonzero(shard == s)[0] for s in range(200)])
    last = np.array([np.flatnonzero(shard == s)[-1] for s in range(200)])
    open_at = [(first <= place) & (place <= last) for place in range(0, 20_000, 50)]
    assert max(np.sum(one) for one in open_at) <= shards.WINDOW + 1
    assert np.mean([np.sum(one) for one in open_at]) > shards.WINDOW / 2
    gaps = np.diff(np.sort(first))
    assert gaps.max() < 3 * gaps.mean()  # new shards arrive at an even pace
    middle = shard[10_000:10_200]
    assert len(set(middle.tolist())) > shards.WINDOW / 2 and np.mean(middle[1:] == middle[:-1]) < 0.2
    assert not np.array_equal(np.argsort(first), np.argsort(np.arange(200)))  # the shards themselves are shuffled


def test_folders_named_by_wordnet_are_in_imagenets_order_and_all_of_it_where_a_recipe_says_so(tmp_path):
    ids = imagenet().wordnet_ids
    chosen = (ids[999], ids[0], ids[281])
    write_photos(tmp_path / "train", 6, chosen)
    for classes, want in ((None, (ids[0], ids[281], ids[999])), (3, (ids[0], ids[281], ids[999])), (1000, ids)):
        data = Data(source=str(tmp_path / "train"), classes=classes)
        found = open_pictures(data, SIZE)
        assert found.class_names == want == class_names(data)
        assert [want[found.label(i)] for i in range(6)] == [Path(found.name(i)).parent.name for i in range(6)]


def test_a_stray_folder_among_wordnet_ids_is_named(tmp_path):
    write_photos(tmp_path, 4, (*imagenet().wordnet_ids[:3], "cats"))
    with pytest.raises(ValueError, match=r"^class 'cats' is no WordNet id of ImageNet's classes, as 3 others are; rename it"):
        open_pictures(Data(source=str(tmp_path)), SIZE)


def test_classes_of_shards_are_named_as_they_say(folder, tmp_path):
    ids = imagenet().wordnet_ids
    for label, want in ((lambda n: str(n), ["0", "1", "2"]), (lambda n: "xyz"[n], ["x", "y", "z"])):
        pattern = write_tars(folder, tmp_path / f"tar{want[0]}", 8, label)
        assert list(class_names(Data(source=pattern))) == want
    pattern = write_tars(folder, tmp_path / "wordnet", 8, lambda n: ids[700 - n])
    found = open_pictures(Data(source=pattern), SIZE)
    assert [found.label(0), found.label(29), found.class_names] == [2, 0, ids[698:701]]
    found = open_pictures(Data(source=pattern, classes=1000), SIZE)
    assert [found.label(0), found.label(29), found.class_names] == [700, 698, ids]
    pattern = write_parquet(folder, tmp_path / "named", 8)
    assert class_names(Data(source=pattern)) == ("ant", "bee", "cow")
    pattern = write_parquet(folder, tmp_path / "bare", 8, described=())
    assert class_names(Data(source=pattern)) == ("0", "1", "2")
    pattern = write_parquet(folder, tmp_path / "texts", 8, label=lambda n: "zyx"[n], described=())
    found = open_pictures(Data(source=pattern), SIZE)
    assert found.class_names == ("x", "y", "z") and found.label(0) == 2


def test_what_shards_hold_is_looked_up_once(folder, tmp_path, cache, monkeypatch):
    tars, parquet = write_tars(folder, tmp_path / "t", 7), write_parquet(folder, tmp_path / "p", 7)
    before = [open_pictures(Data(source=source), SIZE) for source in (tars, parquet)]
    before[1].read(0)
    copies = list((tmp_path / "copies").rglob("*.arrow"))
    assert len(list(cache.glob("*.npz"))) == 5 and len(copies) == 1  # only the shard that was needed
    made = copies[0].stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        after = [open_pictures(Data(source=source), SIZE) for source in (tars, parquet)]
        assert np.array_equal(after[0].read(29).pixels, before[0].read(29).pixels)
        assert np.array_equal(after[1].read(0).pixels, before[1].read(0).pixels)
    assert list((tmp_path / "copies").rglob("*.arrow")) == copies and copies[0].stat().st_mtime_ns == made
    for path in cache.glob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])  # a damaged cache is made anew
    assert open_pictures(Data(source=tars), SIZE).class_names == before[0].class_names
    for one, other in (("t/0000.tar", "t/0001.tar"), ("p/train-00000.parquet", "p/train-00001.parquet")):
        (tmp_path / one).write_bytes((tmp_path / other).read_bytes())  # so is that of another file
    for source in (tars, parquet):
        assert np.array_equal(open_pictures(Data(source=source), SIZE).read(0).pixels, before[0].read(7).pixels)


def test_the_library_keeps_silent_and_is_left_as_it_was(folder, tmp_path, capfd):
    pattern = write_parquet(folder, tmp_path / "p", 40)
    verbosity = hub_datasets.logging.get_verbosity()
    open_pictures(Data(source=pattern), SIZE).read(0)
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="is damaged"):
        open_pictures(Data(source=str(tmp_path / "text.parquet")), SIZE)
    assert capfd.readouterr() == ("", "")
    assert hub_datasets.logging.get_verbosity() == verbosity and not hub_datasets.are_progress_bars_disabled()


def test_a_shard_whose_rows_are_damaged_is_told_in_a_sentence(folder, tmp_path):
    path = Path(write_parquet(folder, tmp_path / "p", 40).replace("*", "00000"))
    content = bytearray(path.read_bytes())
    content[100:4000] = bytes(3900)
    path.write_bytes(content)
    found = open_pictures(Data(source=str(path)), SIZE)
    with pytest.raises(ValueError, match="train-00000.parquet is damaged, or not a parquet file .*; fetch it again"):
        found.read(0)


def test_rows_and_shards_without_pictures(tmp_path):
    """A path in a row isn't followed: it leads to somebody else's files, or to ours."""
    secret = tmp_path / "secret.png"
    photo(1).save(secret)
    without = [{"bytes": None, "path": str(secret)}, None]
    rows = {"bytes.parquet": [{"bytes": secret.read_bytes(), "path": None}, *without], "none.parquet": []}
    (tmp_path / "[a]").mkdir()
    for name, images in rows.items():
        table = pyarrow.table({"image": pyarrow.array(images, IMAGE), "label": pyarrow.array([0] * len(images), pyarrow.int64())})
        pyarrow.parquet.write_table(table, tmp_path / "[a]" / name)
    found = open_pictures(Data(source=str(tmp_path / "[[]a]" / "*.parquet")), SIZE)
    assert len(found) == 3 and found.read(0).pixels.shape == (SIZE, SIZE, 3)
    for index in (1, 2):
        with pytest.raises(DamagedPicture) as raised:
            found.read(index)
        assert raised.value.oddity == Oddity.EMPTY
    assert found.name(2) == f"{tmp_path}/[a]/bytes.parquet: row 2"


def test_shards_of_the_hub_are_fetched_at_one_commit(folder, tmp_path, monkeypatch):
    write_parquet(folder, tmp_path / "p", 7)
    write_tars(folder, tmp_path / "t", 7)
    asked, fetched, steps = [], [], []

    def dataset_info(self, repo, revision):
        asked.append((repo, revision))
        if repo == "no/set":
            raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))
        files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
        return SimpleNamespace(sha="c0ffee", siblings=[SimpleNamespace(rfilename=file) for file in files])

    def download(repo, path, repo_type, revision):
        assert (repo, repo_type, revision) == ("me/set", "dataset", "c0ffee")
        fetched.append(path)
        return str(tmp_path / path)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    whole = open_pictures(Data(source=str(folder)), SIZE)
    found = open_pictures(Data(source="hub:me/set@v1/p/train-*.parquet"), SIZE, lambda done, total: steps.append((done, total)))
    assert asked == [("me/set", "v1")] and len(found) == 30 and steps == 2 * [(n, 5) for n in range(1, 6)]
    assert np.array_equal(found.read(9).pixels, whole.read(9).pixels)
    assert fetched == [f"p/train-0000{n}.parquet" for n in range(5)]
    tarred = open_pictures(Data(source="hub:me/set/t/*.tar"), SIZE)
    assert asked[-1] == ("me/set", None) and np.array_equal(tarred.read(9).pixels, whole.read(9).pixels)
    for source, problem in {
        "hub:me/set/x/*": r"no file of hub:me/set matches 'x/\*'; it has p/train-00000.parquet, ",
        "hub:me": "expected hub:owner/name/pattern",
        "hub:no/set@v1/*": "there is no data set no/set@v1 on the Hub, or it needs a login",
    }.items():
        with pytest.raises(ValueError, match=problem):
            open_pictures(Data(source=source), SIZE)


def test_the_hub_out_of_reach_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="hub:me/set can't be fetched from the Hub: "):
        open_pictures(Data(source="hub:me/set/*.tar"), SIZE)


def test_without_a_network_the_hub_is_out_of_reach(monkeypatch):
    """The network library has errors of its own, which are no OSError."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ConnectionError, match="hub:me/set can't be fetched from the Hub: "):
        open_pictures(Data(source="hub:me/set/*.tar"), SIZE)


def tar_of(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def test_wrong_sources_are_answered_in_a_sentence(folder, tmp_path):
    (tmp_path / "empty" / "ant").mkdir(parents=True)
    (tmp_path / "bare").mkdir()
    (tmp_path / "notes.txt").write_text("")
    whole = Path(tar_of(tmp_path / "whole.tar", {"a.png": b"1" * 3000, "a.cls": b"1"})).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:1500])
    (tmp_path / "text.parquet").write_text("no parquet")
    table = pyarrow.table({"image": [b"x"], "fine_label": [1], "label": [0], "gone": pyarrow.array([None], pyarrow.int64())})
    pyarrow.parquet.write_table(table, tmp_path / "two.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"label": [-1], "image": [b"x"]}), tmp_path / "hidden.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"label": [1]}), tmp_path / "blind.parquet")
    cases = {
        "nowhere": "data.source is 'nowhere', expected 'drawings', a folder",
        str(tmp_path / "bare"): "holds no folders",
        str(tmp_path / "empty"): "hold no pictures, expected files ending in .jpg",
        str(tmp_path / "notes.txt"): "notes.txt is not a shard",
        str(tmp_path / "cut.tar"): "cut.tar is damaged, or not a plain tar",
        str(tmp_path / "text.parquet"): "text.parquet is damaged, or not a parquet",
        str(tmp_path / "two.parquet"): "2 columns that may be the class; name one of image, fine_label, label, gone as data",
        str(tmp_path / "hidden.parquet"): "has pictures of class -1",
        str(tmp_path / "blind.parquet"): "expected one of encoded pictures, got 0",
        tar_of(tmp_path / "a.tar", {"x/a.png": b""}): "sample 'x/a' of .* lacks its class",
        tar_of(tmp_path / "b.tar", {"b.cls": b"1"}): "sample 'b' of .* lacks its picture",
        tar_of(tmp_path / "c.tar", {}): "holds no pictures",
    }
    for source, problem in cases.items():
        with pytest.raises(ValueError, match=problem):
            open_pictures(Data(source=source), SIZE)
    assert open_pictures(Data(source=str(tmp_path / "two.parquet"), label="fine_label"), SIZE).label(0) == 1
    for label, problem in (("gone", "rows without a class"), ("lost", "has no column 'lost'")):
        with pytest.raises(ValueError, match=problem):
            open_pictures(Data(source=str(tmp_path / "two.parquet"), label=label), SIZE)
    with pytest.raises(ValueError, match="the crop rule is 'box'"):
        open_pictures(Data(source=str(folder), crop="box"), SIZE)
    mixed = [str(tmp_path / "mixed-1.tar"), str(tmp_path / "mixed-2.tar")]
    for path, label in zip(mixed, (b"1", b"ant"), strict=True):
        tar_of(Path(path), {"a.png": b"", "a.cls": label})
    with pytest.raises(ValueError, match="write their classes in different ways"):
        open_pictures(Data(source=str(tmp_path / "mixed-*.tar")), SIZE)


def test_pictures_are_read_from_folders_within_and_behind_links_once(tmp_path):
    write_photos(tmp_path / "store", 4, ("ant",))
    root = tmp_path / "set"
    (root / "ant" / "deep").mkdir(parents=True)
    (root / "ant" / "deep" / "circle").symlink_to(root / "ant")
    (root / "ant" / "linked").symlink_to(tmp_path / "store" / "ant")
    (root / "bee").symlink_to(tmp_path / "store" / "ant")
    photo(1).save(root / "ant" / "deep" / "UPPER.PNG")
    for name in (".hidden.png", "notes.txt", "Thumbs.db"):
        (root / "ant" / name).write_text("")
    found = open_pictures(Data(source=str(root)), SIZE)
    names = [str(Path(found.name(i)).relative_to(root)) for i in range(len(found))]
    assert names == ["ant/deep/UPPER.PNG", *(f"ant/linked/{i:05}.{'jpg' if i % 3 else 'png'}" for i in range(4)), *names[5:]]
    assert len(names) == 9 and [found.label(i) for i in (4, 5)] == [0, 1]


@pytest.mark.parametrize("write", [None, write_tars, write_parquet])
def test_a_set_is_small_to_hand_over_to_data_workers(folder, tmp_path, write):
    found = open_pictures(Data(source=write(folder, tmp_path / "shards", 30) if write else str(folder)), SIZE)
    pixels = found.read(7).pixels
    handed = pickle.dumps(found)
    assert isinstance(found, Photos) and len(handed) < 5_000  # no pictures in it
    assert np.array_equal(pickle.loads(handed).read(7).pixels, pixels)


def test_names_of_files_need_not_be_text(tmp_path):
    write_photos(tmp_path, 1, ("ä",))
    (tmp_path / "ä" / "00000.png").rename(tmp_path / "ä" / "0\udcff.png")
    found = open_pictures(Data(source=str(tmp_path)), SIZE)
    assert found.name(0) == f"{tmp_path}/ä/0\udcff.png" and found.class_names == ("ä",)
    found.read(0)
    write_photos(tmp_path, 1, ("\udcff",))  # but those of classes are shown and stored
    with pytest.raises(ValueError, match="name that can't be shown"):
        open_pictures(Data(source=str(tmp_path)), SIZE)


def test_held_out_pictures_have_the_classes_of_the_training(folder, tmp_path, monkeypatch):
    data = Data(source=str(folder))
    trained = open_pictures(data, SIZE)
    write_photos(tmp_path / "val", 3, ("cow", "bee", "ant"))
    assert len(open_held_out(data, str(tmp_path / "val"), trained)) == 3
    write_photos(tmp_path / "other", 3, ("ant", "bee", "dog"))
    write_photos(tmp_path / "some", 2, ("cow", "bee"))
    found = open_held_out(data, str(tmp_path / "some"), trained)
    assert found.class_names == trained.class_names and [found.label(i) for i in range(2)] == [1, 2]
    with pytest.raises(ValueError, match="the 3 classes of .*other are not the 3 of"):
        open_held_out(data, str(tmp_path / "other"), trained)
    assert len(open_held_out(Data(source=str(folder), classes=0), str(tmp_path / "other"), trained)) == 3
    with pytest.raises(ValueError, match="holds no pictures out"):
        open_held_out(data, None, trained)
    asked = []

    def cached_array(size, split, **options):
        asked.append(split)
        return np.zeros((1, size, size, 3), np.uint8), np.array([0])

    monkeypatch.setattr(datasets, "cached_array", cached_array)
    for name in ("drawings", "drawings:train"):
        open_held_out(Data(source=name), None, open_pictures(Data(source=name), SIZE))
    assert asked == ["train", "heldout", "train", "heldout"]


def test_without_the_library_parquet_says_what_to_install(folder, tmp_path, monkeypatch):
    pattern = write_parquet(folder, tmp_path / "p", 40)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs the package datasets, .*; pip install 'cascade-diffusion\[data\]'"):
        open_pictures(Data(source=pattern), SIZE)
    assert len(open_pictures(Data(source=write_tars(folder, tmp_path / "t", 40)), SIZE)) == 30


@pytest.mark.parametrize("write", [write_tars, write_parquet])
def test_balanced_classes_of_shards_are_those_of_a_folder(tmp_path, write):
    write_photos(tmp_path / "set", 7, ("ant", "bee", "ant"))
    pattern = write(tmp_path / "set", tmp_path / "shards", 3)
    from_folder, from_shards = (examples(source, balanced=True) for source in (str(tmp_path / "set"), pattern))
    labels = [from_shards.pictures.label(from_shards.picture_index(number)) for number in range(14)]
    assert labels.count(0) == labels.count(1) == 7
    assert all(same(from_folder[number], from_shards[number]) for number in range(14))
