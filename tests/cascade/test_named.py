"""What a person gives as a reference, and which classifier knows which classes."""

import measuring
import numpy as np
import pytest

from cascade.classes import EMOJI, Vocabulary, imagenet
from cascade.eval.images import ImageSet
from cascade.eval.references import ADM_CROP_RULE
from cascade.measure.named import classifier_of, image_source, reference_source


def test_the_kind_of_an_archive_is_seen_by_its_arrays(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((4, 64, 64, 3), np.uint8))
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(4), sigma=np.eye(4))
    adm = measuring.adm_reference(tmp_path / "adm.npz", 64)
    given = {"image_size": 64, "extractor": "inception-tensorflow", "crop_rule": "edm-centre-lanczos"}
    assert isinstance(reference_source(str(tmp_path / "images.npz"), **given), ImageSet)
    assert reference_source(str(adm), **given).provenance.crop_rule == ADM_CROP_RULE
    plain = reference_source(str(tmp_path / "theirs.npz"), **given)
    assert (plain.provenance.extractor, plain.provenance.resize_mode) == ("inception-v3", "legacy_tensorflow")
    assert plain.provenance.crop_rule == "edm-centre-lanczos" and plain.mean_spatial is None
    with pytest.raises(ValueError, match="none.npz does not exist"):
        reference_source(str(tmp_path / "none.npz"), **given)


def test_a_classifier_is_found_for_the_drawings_and_for_imagenet_and_named():
    name, classify = classifier_of(EMOJI)
    assert name == "the shipped classifier of drawings" and classify(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, len(EMOJI))
    assert classifier_of(Vocabulary.from_names(["cat", "dog"])) is None and classifier_of(None) is None
    pytest.importorskip("efficientnet_lite_pytorch")
    name, classify = classifier_of(imagenet())
    assert name == "EfficientNet-Lite0" and classify(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 1000)


def test_an_archive_of_openais_kind_is_images_and_their_classes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", pixels, np.arange(5))
    images, labels = image_source(str(tmp_path / "samples.npz"))
    assert (images.array() == pixels).all() and labels.tolist() == [0, 1, 2, 3, 4]
    np.savez(tmp_path / "named.npz", images=pixels)
    with pytest.raises(ValueError, match=r"lacks the arrays \['arr_0'\]"):
        image_source(str(tmp_path / "named.npz"))
    with pytest.raises(ValueError, match="none.npz does not exist"):
        image_source(str(tmp_path / "none.npz"))
