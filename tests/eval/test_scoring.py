"""All scores of a set at once: sFID by closed form, what each thing is called, intervals, and features that are kept."""

import numpy as np
import pytest

from cascade.eval.bootstrap import Interval
from cascade.eval.features import ADMFeatures
from cascade.eval.images import image_array
from cascade.eval.metrics import inception_score
from cascade.eval.references import Reference, load_adm_reference, measure, reference_of
from cascade.eval.scoring import FeatureSet, feature_set, mean_interval, score
from cascade.eval.statistics import Provenance


class FakeADM:
    """Pooled features are mean colours; spatial ones the four corners' red; probabilities are three of the colours' shares."""

    name, resize_mode, weights_hash = "inception-v3", "legacy_tensorflow", "0" * 64

    def __call__(self, images):
        return images.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)

    def all_outputs(self, images):
        pooled = self(images)
        spatial = images[:, [0, 0, -1, -1], [0, -1, 0, -1], 0].astype(np.float32)
        return ADMFeatures(pooled, spatial, pooled / pooled.sum(axis=1, keepdims=True))


class FakePooled(FakeADM):
    """Without ADM's other outputs."""

    name, resize_mode = "efficientnet-lite0", "none"
    all_outputs = None


def pictures(seed=0, count=40):
    return np.random.default_rng(seed).integers(1, 256, (count, 4, 4, 3), dtype=np.uint8)


def adm_file(path, mu_s, sigma_s, mu=None, sigma=None):
    mu, sigma = np.zeros(3) if mu is None else mu, np.eye(3) if sigma is None else sigma
    np.savez(path, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s, arr_0=pictures(9, 12))
    return load_adm_reference(path, 4)


def test_sfid_is_the_distance_of_spatial_features_to_adms_spatial_statistics(tmp_path):
    samples = feature_set(image_array(pictures()), FakeADM(), crop_rule=None)
    corners = samples.spatial.astype(np.float64)
    mean, cov = corners.mean(axis=0), np.cov(corners, rowvar=False)
    shifted = adm_file(tmp_path / "shifted.npz", mean + [3, 4, 0, 0], 4 * cov)
    found = score(samples, shifted, resamples=0)
    assert found.sfid == pytest.approx(25 + np.trace(cov), rel=1e-6), "|shift|^2 + tr (2 C^1/2 - C^1/2)^2"
    same = adm_file(tmp_path / "same.npz", mean, cov, samples.features.mean(axis=0), np.cov(samples.features, rowvar=False))
    found = score(samples, same, resamples=0)
    assert found.sfid == pytest.approx(0, abs=1e-6 * np.trace(cov)) and found.frechet.distance == pytest.approx(0, abs=1e-3)
    assert list(found.values()) == ["FID (legacy_tensorflow)", "sFID", "IS"], "statistics alone: nothing of real images"


def test_a_kept_reference_keeps_spatial_statistics():
    samples = feature_set(image_array(pictures(0)), FakeADM(), crop_rule=None)
    real = image_array(pictures(1))
    made = reference_of("real", measure(real, FakeADM(), crop_rule=None), None)
    whole = feature_set(real, FakeADM(), crop_rule=None)
    assert score(samples, made, resamples=0).sfid == pytest.approx(score(samples, whole, resamples=0).sfid, rel=1e-9)
    assert score(samples, whole, resamples=0).kernel_name == "KID x 1000"


def test_the_inception_score_has_parts_of_five_thousand():
    few = feature_set(image_array(pictures()), FakeADM(), crop_rule=None)
    want = inception_score(few.probabilities, num_splits=1)
    assert score(few, few, resamples=0).inception_score == want


def test_an_extractor_without_adms_outputs_has_no_sfid_and_is_not_called_fid():
    sets = [feature_set(image_array(pictures(seed)), FakePooled(), crop_rule=None) for seed in (0, 1)]
    values = score(*sets, resamples=5).values()
    names = ["precision", "recall", "density", "coverage"]
    distance = "EfficientNet-Lite Frechet distance"
    assert list(values) == [distance, f"{distance}, extrapolated", "kernel distance x 1000", *names]
    assert all(isinstance(values[name], Interval) for name in (*names, "EfficientNet-Lite Frechet distance"))


def test_intervals_hold_the_values_that_stand_alone_without_them():
    sets = [feature_set(image_array(pictures(seed)), FakeADM(), crop_rule=None) for seed in (0, 1)]
    told = []
    with_intervals = score(*sets, resamples=20, on_resample=lambda done, total: told.append((done, total))).values()
    alone = score(*sets, resamples=0).values()
    assert told[0] == (1, 10) and told[-1] == (10, 10) and len(told) == 10, "halves"
    for name, value in alone.items():
        found = with_intervals[name]
        if isinstance(found, Interval):
            assert found.estimate == pytest.approx(value, rel=1e-6, abs=1e-9) and found.low <= found.estimate <= found.high
        else:
            assert found == value and name in ("IS", "KID x 1000")


def test_a_mean_without_resamples_is_a_number():
    assert mean_interval(np.array([1, 2, 6]), 0) == 3


def test_kept_features_are_of_their_resize_mode(tmp_path):
    real = image_array(pictures())

    class Other(FakePooled):
        resize_mode = "other"

        def __call__(self, images):
            return super().__call__(images) + 1

    first = feature_set(real, FakePooled(), crop_rule=None, cache=tmp_path)
    assert (feature_set(real, Other(), crop_rule=None, cache=tmp_path).features == first.features + 1).all()
    assert (feature_set(real, FakePooled(), crop_rule=None, cache=tmp_path).features == first.features).all()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_distance_is_extrapolated_to_infinitely_many_samples():
    # A Gaussian against itself: 0 in truth, and what few samples add falls with their inverse number.
    rng = np.random.default_rng(0)
    mean, cov = np.zeros(8), np.eye(8)
    provenance = Provenance(extractor="gauss", weights_hash=None, resize_mode=None)
    real = Reference(mean=mean, cov=cov, count=None, provenance=provenance, name="gauss")
    found = [score(FeatureSet("s", rng.normal(size=(200, 8)), provenance), real, resamples=2) for _ in range(30)]
    distances, extrapolated = (np.mean([get(one) for one in found]) for get in (distance_of, lambda one: one.extrapolated))
    assert distances > 0.1 and abs(extrapolated) < 0.1 * distances
    assert score(FeatureSet("s", rng.normal(size=(200, 8)), provenance), real, resamples=0).extrapolated is None


def distance_of(scores):
    return scores.frechet.distance
