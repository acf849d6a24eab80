"""What the tests of measuring share: a cascade of the drawings' classes, drawings made of noise, and a quick extractor."""

import numpy as np
from tiny import SMALL, base, cascade, network, sr3

from cascade.classes import EMOJI
from cascade.eval.features import ADMFeatures
from cascade.stages.regression import RegressionPipeline

SIZE = 64


class Pooled:
    """Means over a grid of 3x3 places in place of a network."""

    name, resize_mode, weights_hash, dimension = "efficientnet-lite0", "none", "0" * 64, 27

    def __call__(self, images):
        side = images.shape[1] // 3
        part = images[:, : 3 * side, : 3 * side].astype(np.float32)
        return part.reshape(len(images), 3, side, 3, side, 3).mean(axis=(2, 4)).reshape(len(images), -1)


class ADMPooled(Pooled):
    """The same means in place of Inception and of all that ADM's evaluator takes from it; spatial ones of the first colour."""

    name, resize_mode = "inception-v3", "legacy_tensorflow"

    def all_outputs(self, images):
        pooled = self(images)
        spatial = pooled[:, ::3]
        return ADMFeatures(pooled, spatial, spatial / spatial.sum(axis=1, keepdims=True))


def adm_reference(path, size=SIZE):
    """A file as ADM publishes them, of the training drawings."""
    pictures = drawings(size, "train")[0]
    found = ADMPooled().all_outputs(pictures)
    arrays = {"mu": found.pooled.mean(0), "sigma": np.cov(found.pooled, rowvar=False), "arr_0": pictures}
    arrays |= {"mu_s": found.spatial.mean(0), "sigma_s": np.cov(found.spatial, rowvar=False)}
    np.savez(path, **arrays)
    return path


def model(folder):
    """A saved cascade 16 -> 64 of the drawings' 75 classes."""
    small = SMALL | {"num_classes": len(EMOJI)}
    made = cascade(EMOJI, base=base(sample_size=16, **small), sr64=sr3(64, 16, **small))
    made.save_pretrained(folder)
    return folder


def regression(folder, low_res_size=16):
    """A saved regression stage of the same classes."""
    small = SMALL | {"num_classes": len(EMOJI), "prediction_type": "sample"}
    RegressionPipeline(network(sample_size=64, low_res_size=low_res_size, **small)).save_pretrained(folder)
    return folder


def drawings(size, split, progress=None):
    """As `cascade.data.drawings.cached_array`, a few pictures of noise."""
    count = 24 if split == "train" else 12
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8), np.arange(count) * 5 % len(EMOJI)


def quick(monkeypatch, tmp_path):
    """Replace drawings and networks by quick ones, and the user's cache by an empty folder."""

    def extractor_of(name, *args):
        return ADMPooled() if name == "inception-tensorflow" else Pooled()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("cascade.measure.named.cached_array", drawings)
    monkeypatch.setattr("cascade.measure.named.glyphs", lambda split: np.arange(24 if split == "train" else 12) // 2)
    for module in ("benchmark", "check", "super_resolution", "evaluation", "named"):
        monkeypatch.setattr(f"cascade.measure.{module}.extractor_of", extractor_of)
