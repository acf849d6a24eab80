"""Reading sets of images, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from cascade.eval.images import area_downsample, image_array, image_folder


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
