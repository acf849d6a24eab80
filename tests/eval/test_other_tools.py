"""The same features and images through the tools that others use, and the same numbers, as docs/evaluation.md says."""

import numpy as np
import pytest
import torch

from cascade.eval.frechet import frechet_distance
from cascade.eval.metrics import kid, overlap
from cascade.eval.paired import psnr, ssim


@pytest.fixture(scope="module")
def features():
    """Generated and real, of which neither covariance is diagonal and some balls overlap."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(32, 32)) / 6
    return rng.normal(0.2, 0.9, (400, 32)) @ mixing, rng.normal(size=(300, 32)) @ mixing


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (3, 8, 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    originals = (coarse * 0.8 + rng.normal(25, 8, coarse.shape)).clip(0, 255).astype(np.uint8)
    return (originals + rng.normal(0, 12, coarse.shape)).clip(0, 255).astype(np.uint8), originals


def moments(features):
    return features.mean(axis=0), np.cov(features, rowvar=False)


def test_the_frechet_distance_is_that_of_pytorch_fid(torchvision, features):
    theirs = pytest.importorskip("pytorch_fid.fid_score")
    generated, real = map(moments, features)
    want = theirs.calculate_frechet_distance(*generated, *real)
    assert want > 0.1
    assert frechet_distance(*generated, *real) == pytest.approx(want, rel=1e-8)


def test_the_frechet_distance_is_that_of_torch_fidelity(torchvision, features):
    theirs = pytest.importorskip("torch_fidelity.metric_fid")
    generated, real = map(moments, features)
    want = theirs.fid_statistics_to_metric(
        {"mu": generated[0], "sigma": generated[1]}, {"mu": real[0], "sigma": real[1]}, verbose=False
    )[theirs.KEY_METRIC_FID]
    assert frechet_distance(*generated, *real) == pytest.approx(want, rel=1e-8)


def test_the_kernel_distance_is_that_of_torch_fidelity(torchvision, features):
    theirs = pytest.importorskip("torch_fidelity.metric_kid")
    generated, real = (torch.from_numpy(each[:300]) for each in features)
    want = theirs.kid_features_to_metric(generated, real, kid_subsets=1, kid_subset_size=300, verbose=False)
    got = kid(*(each[:300] for each in features), num_subsets=1, subset_size=300).mean
    assert got == pytest.approx(want[theirs.KEY_METRIC_KID_MEAN], rel=1e-9)


def test_precision_recall_density_and_coverage_are_those_of_prdc(features):
    theirs = pytest.importorskip("prdc")
    generated, real = features
    want = theirs.compute_prdc(real_features=real, fake_features=generated, nearest_k=5)
    found = overlap(generated, real, k=5)
    assert 0.1 < want["recall"] < 1 and 0.1 < want["coverage"] < 1
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name).mean() == pytest.approx(want[name], rel=1e-12), name


def test_psnr_and_ssim_are_those_of_piq(torchvision, pictures):
    theirs = pytest.importorskip("piq")
    outputs, originals = (torch.from_numpy(each).permute(0, 3, 1, 2).double() for each in pictures)
    want = theirs.psnr(outputs, originals, data_range=255.0, reduction="none").numpy()
    np.testing.assert_allclose(psnr(*pictures), want, rtol=1e-6)
    settings = {"data_range": 255.0, "reduction": "none", "downsample": False}
    want = theirs.ssim(outputs, originals, **settings).numpy()
    np.testing.assert_allclose(ssim(*pictures), want, rtol=1e-6)
