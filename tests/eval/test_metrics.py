"""KID, precision, recall, density, coverage and Inception Score: brute force, other libraries, closed forms."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cascade.eval.metrics import inception_score, jackknife_error, kernel_distance, kid, overlap


def clouds(generated: int = 60, real: int = 80, dimension: int = 6, shift: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(shift, 0.8, (generated, dimension)), rng.normal(0, 1, (real, dimension))


def manifold(generated: np.ndarray, real: np.ndarray, k: int = 3) -> SimpleNamespace:
    """Precision, recall, density and coverage."""
    found = overlap(generated, real, k=k)
    return SimpleNamespace(**{name: getattr(found, name).mean() for name in ("precision", "recall", "density", "coverage")})


def test_kernel_distance_equals_a_sum_over_pairs():
    x, y = clouds(7, 9)
    kernel = lambda a, b: (a @ b / 6 + 1) ** 3  # noqa: E731
    within_x = np.mean([kernel(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    within_y = np.mean([kernel(y[i], y[j]) for i in range(9) for j in range(9) if i != j])
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * between, rel=1e-12)


def test_kernel_distance_agrees_with_torchmetrics(torchvision):
    poly_mmd = pytest.importorskip("torchmetrics.image.kid").poly_mmd

    x, y = clouds(50, 50)
    want = poly_mmd(torch.from_numpy(x), torch.from_numpy(y), degree=3, gamma=None, coef=1.0)
    assert kernel_distance(x, y) == pytest.approx(want.item(), rel=1e-10)


def test_kernel_distance_is_unbiased():
    # Both sets from one distribution: the mean over many draws is 0 within its standard error.
    rng = np.random.default_rng(1)
    values = [kernel_distance(rng.normal(size=(20, 4)), rng.normal(size=(30, 4))) for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20


def test_kid_of_subsets_is_repeatable_and_close_to_the_whole():
    x, y = clouds(300, 300)
    first, again = (kid(x, y, num_subsets=50, subset_size=100) for _ in range(2))
    assert first == again and first.std > 0
    assert first.mean == pytest.approx(kernel_distance(x, y), abs=4 * first.std / np.sqrt(50))
    whole = kid(x, y, num_subsets=3)
    assert whole.mean == pytest.approx(kernel_distance(x, y), rel=1e-10) and whole.std < 1e-10


def manifold_by_definition(generated: np.ndarray, real: np.ndarray, k: int) -> tuple[float, float, float, float]:
    def reach(points):
        return [sorted(np.linalg.norm(points - p, axis=1))[k] for p in points]  # [0] is the point itself

    reach_generated, reach_real = reach(generated), reach(real)
    in_real = [[np.linalg.norm(g - r) <= d for r, d in zip(real, reach_real, strict=True)] for g in generated]
    in_generated = [[np.linalg.norm(g - r) <= d for g, d in zip(generated, reach_generated, strict=True)] for r in real]
    return (
        np.mean([any(row) for row in in_real]),
        np.mean([any(row) for row in in_generated]),
        np.mean([sum(row) for row in in_real]) / k,
        np.mean([any(column) for column in zip(*in_real, strict=True)]),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifold_follows_the_definitions(k):
    generated, real = clouds()
    got = manifold(generated, real, k=k)
    want = manifold_by_definition(generated, real, k)
    assert 0.2 < want[0] < 1 and 0.2 < want[3] < 1  # a case that can tell right from wrong
    assert (got.precision, got.recall, got.density, got.coverage) == pytest.approx(want, rel=1e-12)


def test_a_feature_on_the_rim_of_a_ball_is_inside():
    real, generated = np.array([[0.0], [2.0]]), np.array([[-2.0], [9.0]])  # the real balls have the radius 2
    found = overlap(generated, real, k=1)
    assert found.density.tolist() == [1, 0] and found.coverage.tolist() == [True, False]
    assert overlap(real, generated, k=1).recall.tolist() == [True, False]


def test_manifold_is_the_same_in_blocks_and_far_from_the_origin(monkeypatch):
    generated, real = clouds()
    want = manifold(generated, real)
    monkeypatch.setattr("cascade.eval.metrics.BLOCK", 7)
    assert manifold(generated, real) == want
    assert manifold(generated + 1e5, real + 1e5) == want


def test_precision_and_recall_change_places_with_the_sets():
    generated, real = clouds()
    one, other = manifold(generated, real), manifold(real, generated)
    assert (one.precision, one.recall) == (other.recall, other.precision)


@pytest.mark.parametrize("num_groups", [2, 7, 30])
def test_leaving_a_group_out_is_measuring_without_it(monkeypatch, num_groups):
    generated, real = clouds()
    generated[:12] = generated[:12] * 0.01 + 0.5  # a cluster, whose neighbours a group may hold
    monkeypatch.setattr("cascade.eval.metrics.BLOCK", 17)
    monkeypatch.setattr("cascade.eval.metrics.NEAREST", 1)
    found = overlap(generated, real, k=3, num_groups=num_groups)
    groups = np.random.default_rng(0).permutation(len(generated)) % num_groups
    for group in range(num_groups):
        alone = overlap(generated[groups != group], real, k=3)
        assert found.recall_without[group] == pytest.approx(alone.recall.mean(), abs=1e-12)
        assert found.coverage_without[group] == pytest.approx(alone.coverage.mean(), abs=1e-12)
    assert len(set(found.recall_without)) > 1


def test_the_jackknife_error_of_recall_and_coverage_is_the_spread_of_other_sets():
    rng = np.random.default_rng(5)
    real = rng.normal(size=(300, 4))
    found, errors = [], []
    for _ in range(60):
        values = overlap(rng.normal(0.3, 0.8, (200, 4)), real, k=3, num_groups=20)
        found.append((values.recall.mean(), values.coverage.mean()))
        errors.append((jackknife_error(values.recall_without), jackknife_error(values.coverage_without)))
    ratio = np.sqrt(np.square(errors).mean(axis=0)) / np.std(found, axis=0)
    assert (ratio > 0.75).all() and (ratio < 1.5).all()


def test_equal_sets_overlap_fully_and_distant_ones_not_at_all():
    generated, real = clouds()
    same = manifold(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    apart = manifold(generated + 100, real)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)


def test_precision_and_recall_agree_with_torch_fidelity(torchvision):
    prc = pytest.importorskip("torch_fidelity.metric_prc")  # 0.4: the first set is the generated one

    generated, real = clouds()
    settings = {"prc_neighborhood": 3, "prc_batch_size": 1000, "save_cpu_ram": False, "verbose": False}
    want = prc.prc_features_to_metric(torch.from_numpy(generated), torch.from_numpy(real), **settings)
    got = manifold(generated, real, k=3)
    assert got.precision == pytest.approx(want[prc.KEY_METRIC_PRECISION])
    assert got.recall == pytest.approx(want[prc.KEY_METRIC_RECALL])


def test_inception_score_of_certain_and_of_clueless_classifiers():
    certain = np.eye(10)[np.arange(50) % 10]
    assert inception_score(certain, num_splits=5, in_order=True).mean == pytest.approx(10, rel=1e-12)
    clueless = np.full((50, 10), 0.1)
    assert inception_score(clueless, num_splits=5).mean == pytest.approx(1, rel=1e-12)


def test_inception_score_of_two_answers_in_closed_form():
    # Rows (1-e, e) and (e, 1-e) in equal number: log score = log 2 - entropy(e).
    e = 0.2
    p = np.tile([[1 - e, e], [e, 1 - e]], (8, 1))
    want = np.exp(np.log(2) + e * np.log(e) + (1 - e) * np.log(1 - e))
    assert inception_score(p, num_splits=1).mean == pytest.approx(want, rel=1e-12)


def test_inception_score_of_parts_does_not_depend_on_the_order_of_the_classes():
    p = np.eye(2)[[0] * 10 + [1] * 10]
    in_order = inception_score(p, num_splits=2, in_order=True)
    assert (in_order.mean, in_order.std) == (1, 0)  # each half holds one class only
    assert inception_score(p, num_splits=1).mean == pytest.approx(2)
    sharp = np.eye(50)[np.arange(5000) % 50]
    by_class = sharp[np.argsort(np.arange(5000) % 50, kind="stable")]
    found = [inception_score(each, num_splits=5) for each in (sharp, by_class)]
    assert all(40 < each.mean < 50 for each in found) and found[0].mean == pytest.approx(found[1].mean, rel=0.02)
    assert inception_score(by_class, num_splits=5, in_order=True).mean == pytest.approx(10), "ten classes in each part"
    assert found[1] == inception_score(by_class, num_splits=5), "always the same parts"


def test_unusable_features_are_refused():
    x, y = clouds()
    with pytest.raises(ValueError, match="one extractor"):
        kernel_distance(x, y[:, :3])
    with pytest.raises(ValueError, match="at least 4"):
        manifold(x[:3], y)
    with pytest.raises(ValueError, match="logits"):
        inception_score(x, num_splits=10)


def test_inception_score_agrees_with_torch_fidelity(torchvision):
    isc = pytest.importorskip("torch_fidelity.metric_isc")

    logits = torch.randn(60, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    want = isc.isc_features_to_metric(logits, splits=5, shuffle=False)
    got = inception_score(logits.softmax(dim=1).numpy(), num_splits=5, in_order=True)
    assert got.mean == pytest.approx(want[isc.KEY_METRIC_ISC_MEAN], rel=1e-6)
    assert got.std == pytest.approx(want[isc.KEY_METRIC_ISC_STD], rel=1e-6)
