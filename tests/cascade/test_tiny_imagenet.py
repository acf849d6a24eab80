"""Tiny ImageNet as its zip unpacks, photographs without classes, and models that know some of ImageNet's classes."""

import json
from pathlib import Path

import numpy as np
import pytest
from odd_files import photo, write_photos

from cascade.classes import Vocabulary, imagenet
from cascade.cli.main import main
from cascade.data import class_names, open_held_out, open_pictures
from cascade.folder import Manifest, StageEntry
from cascade.measure import named
from cascade.stages.saved import ModelError
from cascade.stages.training import Data

SIZE = 16
IDS = ("n01443537", "n02123045", "n07749582")  # goldfish, tabby, lemon
ANSWERS = ["val_0.JPEG\tn07749582\t0\t0\t9\t9", "val_1.JPEG\tn01443537\t0\t0\t9\t9", "val_2.JPEG\tn07749582\t1\t1\t2\t2"]


@pytest.fixture
def zip_as_it_unpacks(tmp_path) -> Path:
    root = tmp_path / "tiny-imagenet-200"
    for number, one in enumerate(IDS):
        write_photos(root / "train" / one, 2, ("images",))
        (root / "train" / one / f"{one}_boxes.txt").write_text(f"{one}_{number}.JPEG\t0\t0\t9\t9\n")
    (root / "val" / "images").mkdir(parents=True)
    for number in range(3):
        photo(number).save(root / "val" / "images" / f"val_{number}.JPEG")
    (root / "val" / "val_annotations.txt").write_text("\n".join(ANSWERS) + "\n")
    return root


def test_the_training_folders_and_the_annotated_pictures_have_the_same_classes(zip_as_it_unpacks):
    data = Data(source=str(zip_as_it_unpacks / "train"), classes=3)
    trained = open_pictures(data, SIZE)
    assert trained.class_names == IDS == class_names(data) and len(trained) == 6
    assert [IDS[trained.label(i)] for i in range(6)] == [Path(trained.name(i)).parents[1].name for i in range(6)]
    held_out = open_held_out(data, str(zip_as_it_unpacks / "val"), trained)
    shown = {Path(held_out.name(i)).name: IDS[held_out.label(i)] for i in range(len(held_out))}
    assert shown == {line.split("\t")[0]: line.split("\t")[1] for line in ANSWERS}
    assert held_out.read(0).pixels.shape == (SIZE, SIZE, 3)


def test_annotations_that_are_missing_or_damaged_are_told_in_a_sentence(zip_as_it_unpacks):
    val = zip_as_it_unpacks / "val"
    data = Data(source=str(val))
    for second, problem in (
        ("val_1.JPEG n01443537", "line 2 of .*val_annotations.txt is 'val_1.JPEG n01443537', expected a picture's name and"),
        ("val_1.JPEG\tgoldfish\t0", "line 2 of .*val_annotations.txt is "),
        ("../../x.JPEG\tn01443537\t0", "line 2 of .*val_annotations.txt is "),
    ):
        (val / "val_annotations.txt").write_text("\n".join([ANSWERS[0], second]))
        with pytest.raises(ValueError, match=problem):
            open_pictures(data, SIZE)
    (val / "val_annotations.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="val_annotations.txt can't be read"):
        class_names(data)
    (val / "val_annotations.txt").unlink()
    with pytest.raises(ValueError, match="no val_annotations.txt, which says what Tiny ImageNet's validation pictures show"):
        open_pictures(data, SIZE)


def test_photographs_without_classes_may_lie_anywhere(tmp_path):
    write_photos(tmp_path, 3, ("images",))
    data = Data(source=str(tmp_path), classes=0)
    assert len(open_pictures(data, SIZE)) == 3
    flat = Data(source=str(tmp_path / "images"), classes=0)
    found = open_pictures(flat, SIZE)
    assert class_names(flat) == found.class_names == ("",) and found.read(2).pixels.shape == (SIZE, SIZE, 3)
    with pytest.raises(ValueError, match="holds no folders"):
        open_pictures(Data(source=str(tmp_path / "images")), SIZE)


def test_some_of_imagenets_classes_keep_all_their_names_and_survive_the_manifest(tmp_path):
    some, every = Vocabulary.from_names(IDS), imagenet()
    assert some.wordnet_ids == IDS and list(some.names) == [every.names[every.index(one)] for one in IDS]
    for place, one in enumerate(IDS):
        full = every.index(one)
        assert some.synonyms[place] == every.synonyms[full]
        for query in (one, every.names[full], *every.synonyms[full], place, str(place)):
            assert some.index(query) == place
    assert every.only(every.wordnet_ids) == every == Vocabulary.from_names(every.wordnet_ids)
    base = StageEntry("base", "base", "BasePipeline", 64)
    for vocabulary in (some, every):
        Manifest("m", vocabulary, (base,)).write(tmp_path)
        assert Manifest.read(tmp_path).classes == vocabulary
    values = json.loads((tmp_path / "cascade.json").read_text())
    for ids in (["n00000000"], [IDS[0], IDS[0]], 3, [3], []):
        values["classes"] = {"vocabulary": "imagenet", "wordnet_ids": ids}
        (tmp_path / "cascade.json").write_text(json.dumps(values))
        with pytest.raises(ModelError):
            Manifest.read(tmp_path)


def test_the_judge_of_some_of_imagenets_classes_chooses_among_them(monkeypatch):
    class Network:
        def __init__(self, device):
            pass

        def probabilities(self, images):
            return np.arange(2000.0).reshape(2, 1000)

    monkeypatch.setattr(named, "EfficientNetLite", Network)
    name, judge = named.classifier_of(Vocabulary.from_names(IDS))
    assert name == "EfficientNet-Lite0 among 3 classes"
    wanted = [imagenet().index(one) for one in IDS]
    np.testing.assert_array_equal(judge(np.zeros((2, 4, 4, 3), np.uint8)), [wanted, [1000 + i for i in wanted]])
    assert named.classifier_of(imagenet())[0] == "EfficientNet-Lite0" and named.classifier_of(Vocabulary(("a", "b"))) is None


def test_an_untrained_class_is_refused_with_the_nearest_trained_ones(tmp_path, capsys):
    Manifest("pets", Vocabulary.from_names(IDS), (StageEntry("base", "base", "BasePipeline", 64),)).write(tmp_path)
    assert main(["classes", "--model", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and [line.split()[:2] for line in lines] == [[str(i), one] for i, one in enumerate(IDS)]
    some = Vocabulary.from_names(IDS)
    begins = "class 'tench' of ImageNet is not one of the 3 that this model was trained on: the nearest are 'goldfish'"
    with pytest.raises(ValueError, match=begins):
        some.index("tench")
    with pytest.raises(ValueError, match=begins):
        some.index("n01440764")
    with pytest.raises(ValueError, match="'a cat having a striped coat' of ImageNet.*nearest are 'tabby cat'"):
        some.index("tiger cat")
    with pytest.raises(ValueError, match="'trombone' of ImageNet.*: see `cascade classes`"):
        some.index("trombone")
    with pytest.raises(ValueError, match="^unknown class 'glodfish' among 3 classes: the closest are 'goldfish'"):
        some.index("glodfish")
