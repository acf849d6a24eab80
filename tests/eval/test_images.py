"""Reading sets of images, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from cascade.eval.images import HashedWalk, ImageStream, area_downsample, balanced_choice, image_array, image_folder


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, pixels):
    for i, image in enumerate(pixels):
        path = tmp_path / "samples" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "samples"


def test_a_folder_is_read_in_the_order_of_its_paths(folder, pixels):
    images = image_folder(folder)
    batches = list(images.batches(batch_size=3))
    assert (len(images), images.size, [len(b) for b in batches]) == (7, 8, [3, 3, 1])
    np.testing.assert_array_equal(np.concatenate(batches), pixels[[0, 2, 4, 6, 1, 3, 5]])


def test_an_array_and_a_folder_of_the_same_images_have_the_same_hash(folder, pixels):
    array = image_array(pixels[[0, 2, 4, 6, 1, 3, 5]])
    assert array.source_hash() == image_folder(folder).source_hash()
    assert array.source_hash() != image_array(pixels).source_hash()


def test_records_of_a_sampling_run_are_passed_over(folder):
    (folder / "manifest.json").write_text("{}")
    (folder / ".lock").write_text("")
    assert len(image_folder(folder)) == 7


def test_a_grey_or_transparent_image_becomes_rgb(tmp_path):
    Image.new("L", (8, 8), 100).save(tmp_path / "grey.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 255)).save(tmp_path / "transparent.png")
    grey, transparent = next(image_folder(tmp_path).batches())
    assert grey.shape == transparent.shape == (8, 8, 3)
    assert (grey == 100).all() and (transparent == [1, 2, 3]).all()


def refusal(call) -> str:
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_unusable_folders_are_one_sentence(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is not a folder" in refusal(lambda: image_folder(tmp_path / "nowhere"))
    assert "holds no images" in refusal(lambda: image_folder(tmp_path / "empty"))
    assert "holds 7 images, but at least 10" in refusal(lambda: image_folder(folder, minimum=10))
    assert "is 8x8, expected 16x16" in refusal(lambda: list(image_folder(folder, size=16).batches()))


def test_a_foreign_file_among_the_samples_is_refused_by_suffix_and_by_content(folder):
    (folder / "notes.txt").write_text("hello")
    assert "notes.txt is not an image" in refusal(lambda: image_folder(folder))
    (folder / "notes.txt").rename(folder / "notes.png")
    assert "notes.png is not an image" in refusal(lambda: list(image_folder(folder).batches()))


def test_a_truncated_image_is_refused(folder):
    path = folder / "class1" / "5.png"
    path.write_bytes(path.read_bytes()[:60])
    assert "5.png is not an image, or is damaged" in refusal(lambda: list(image_folder(folder).batches()))


def test_images_of_other_shapes_are_refused(folder):
    Image.new("RGB", (8, 4)).save(folder / "class1" / "wide.png")
    assert "wide.png is 8x4, expected 8x8" in refusal(lambda: list(image_folder(folder).batches()))


def test_arrays_of_something_else_are_refused(pixels):
    assert "holds float64" in refusal(lambda: image_array(pixels / 255.0))
    assert "is 8x8, expected 4x4" in refusal(lambda: image_array(pixels, size=4))


def test_area_downsample_takes_block_means():
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(area_downsample(image, 2)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(area_downsample(image, 4), image)
    with pytest.raises(ValueError, match="multiple of 3"):
        area_downsample(image, 3)


def test_area_downsample_equals_pillow_box_filter(pixels):
    want = [
        np.asarray(Image.fromarray(p[:, :, 0].astype(np.float32), mode=None).resize((2, 2), Image.Resampling.BOX)) for p in pixels
    ]
    np.testing.assert_allclose(area_downsample(pixels, 2)[..., 0], want, rtol=1e-6)


def test_a_choice_is_balanced_random_and_goes_on_from_a_smaller_one():
    classes = np.repeat(["few", "some", "many"], [3, 20, 200])
    chosen = balanced_choice(classes, 223, 30)
    counts = {name: int((classes[chosen] == name).sum()) for name in ("few", "some", "many")}
    assert counts["few"] == 3 and {counts["some"], counts["many"]} == {13, 14}
    for count in (1, 7, 29):
        assert (balanced_choice(classes, 223, count) == chosen[:count]).all()
    assert sorted(balanced_choice(classes, 223, 1000)) == list(range(223)), "all there are, none twice"
    of_many = chosen[classes[chosen] == "many"] - 23
    assert of_many.std() > 30, "not the first ones of a class"
    assert len(set(classes[balanced_choice(classes, 223, 3)])) == 3
    unknown = balanced_choice(None, 223, 30)
    assert len(set(unknown)) == 30 and not (np.sort(unknown) == np.arange(30)).all()


def test_images_that_are_made_when_asked_for_are_those_that_are_there(pixels):
    images = image_array(pixels)
    halves = images.mapped(lambda batch: batch[:, ::2, ::2], 4)
    assert (len(halves), halves.size, halves.paths) == (7, 4, None)
    np.testing.assert_array_equal(halves.array(), pixels[:, ::2, ::2])
    chosen = halves.take(np.array([5, 0, 5])).take(np.array([0, 1]))
    np.testing.assert_array_equal(chosen.array(), pixels[[5, 0], ::2, ::2])
    assert halves.source_hash() == image_array(pixels[:, ::2, ::2]).source_hash()
    seen: list[int] = []
    counted = images.mapped(lambda batch: seen.append(len(batch)) or batch, 8)
    next(counted.take(np.arange(6)).batches(batch_size=2))
    assert seen == [2], "no more is read than is asked for"


def test_one_walk_gives_the_hash_of_the_set(pixels):
    walk = HashedWalk(image_array(pixels))
    np.testing.assert_array_equal(np.concatenate(list(walk)), pixels)
    assert walk.source_hash == image_array(pixels).source_hash()


def test_notices_are_passed_over_and_other_texts_are_not(folder):
    for name in ("NOTICE", "LICENSE.txt", "README.md"):
        (folder / name).write_text("whose these are")
    (folder / "class0" / "notice.png").write_bytes((folder / "class0" / "0.png").read_bytes())
    assert len(image_folder(folder)) == 8, "an image is one by whatever name"
    (folder / "labels.txt").write_text("0 1 2")
    assert "labels.txt is not an image" in refusal(lambda: image_folder(folder))


def test_a_stream_has_the_batches_and_the_hash_of_the_set_and_takes_no_more_than_a_batch(pixels):
    taken = []

    def one_by_one():
        for image in pixels:
            taken.append(image)
            yield image

    stream = HashedWalk(ImageStream(8, one_by_one()))
    first = next(iter(ImageStream(8, one_by_one()).batches(3)))
    assert len(first) == len(taken) == 3
    assert sum(map(len, stream)) == 7 and stream.source_hash == image_array(pixels).source_hash()
