"""What a person gives as a reference, and which classifier knows which classes."""

import measuring
import numpy as np
import pytest
import torch

from cascade.classes import EMOJI, Vocabulary, imagenet
from cascade.eval.files import file_sha256
from cascade.eval.images import ImageSet
from cascade.eval.published_weights import PublishedWeights
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
    with pytest.raises(ValueError, match="there is no .*none.npz"):
        reference_source(str(tmp_path / "none.npz"), **given)


def test_a_classifier_is_found_for_the_drawings_and_for_imagenet_and_named():
    name, classify = classifier_of(EMOJI)
    assert name == "the shipped classifier of drawings" and classify(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, len(EMOJI))
    assert classifier_of(Vocabulary.from_names(["cat", "dog"])) is None and classifier_of(None) is None
    pytest.importorskip("efficientnet_lite_pytorch")
    name, classify = classifier_of(imagenet())
    assert name == "EfficientNet-Lite0" and classify(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 1000)


def test_resnet_50_judges_among_some_of_imagenets_classes_by_their_columns(tmp_path, monkeypatch):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    torch.save(models.resnet50(weights=None).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="expected 0676ba61"):
        classifier_of(imagenet(), name="resnet50", weights=tmp_path / "w.pth")
    found = file_sha256(tmp_path / "w.pth")
    monkeypatch.setattr("cascade.eval.resnet.IMAGENET_V1", PublishedWeights(url="https://there/w.pth", sha256=found))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    some = imagenet().only(["n07749582", "n01443537"])
    called, among_all = classifier_of(imagenet(), name="resnet50", weights=tmp_path / "w.pth")
    assert called == f"torchvision's ResNet-50 (SHA-256 {found})"
    called, among_two = classifier_of(some, name="resnet50", weights=tmp_path / "w.pth")
    assert called.endswith(" among 2 classes")
    columns = [imagenet().index("lemon"), imagenet().index("goldfish")]
    np.testing.assert_array_equal(among_two(pictures), among_all(pictures)[:, columns])


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
