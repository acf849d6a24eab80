"""Reconstructed averages: inner products against numbers, mixtures against direct tracking, snapshots against damage."""

import numpy as np
import pytest
import torch

from cascade.stages.training import checkpoint, post_hoc
from cascade.stages.training.ema import PowerAverage, gamma_of
from cascade.stages.training.post_hoc import Profile, Snapshots, inner_product, mixture

TRACKED = (0.05, 0.10)


def density(profile: Profile, n: np.ndarray) -> np.ndarray:
    gamma = gamma_of(profile.std)
    return np.where(n <= profile.images, (gamma + 1) * n**gamma / profile.images ** (gamma + 1.0), 0.0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Profile(0.05, 100), Profile(0.05, 100)),
        (Profile(0.05, 100), Profile(0.10, 70)),
        (Profile(0.10, 30), Profile(0.05, 100)),
        (Profile(0.28, 100), Profile(0.02, 99)),
    ],
)
def test_inner_products_are_the_integrals(a, b):
    x, share = np.polynomial.legendre.leggauss(300)
    end = min(a.images, b.images)
    n, share = (x + 1) / 2 * end, share / 2 * end
    want = (share * density(a, n) * density(b, n)).sum()
    assert inner_product(gamma_of(a.std), a.images, gamma_of(b.std), b.images) == pytest.approx(want, rel=1e-9)


def grid(count: int, total: int = 1_000_000) -> list[Profile]:
    return [Profile(std, (i + 1) * total // count) for i in range(count) for std in TRACKED]


@pytest.mark.parametrize("std", TRACKED)
def test_a_tracked_average_is_its_own_mixture(std):
    profiles = grid(200)
    factors, distance = mixture(profiles, Profile(std, 500_000))
    want = np.array([float(p == Profile(std, 500_000)) for p in profiles])
    np.testing.assert_allclose(factors, want, atol=1e-9)
    assert distance < 1e-6


@pytest.mark.parametrize("std", [0.02, 0.075, 0.15, 0.25])
def test_factors_sum_to_one_and_their_profile_is_as_far_off_as_they_say(std):
    profiles, wanted = grid(20), Profile(std, 1_000_000)
    factors, distance = mixture(profiles, wanted)
    assert factors.sum() == pytest.approx(1, abs=1e-9)
    n = (np.arange(50_000) + 0.5) * 20
    made = sum(factor * density(profile, n) for factor, profile in zip(factors, profiles, strict=True))
    off = np.sqrt(((made - density(wanted, n)) ** 2).sum() / (density(wanted, n) ** 2).sum())
    assert distance == pytest.approx(off, rel=1e-3)


def test_no_other_factors_of_sum_one_come_closer():
    profiles, wanted, rng = grid(6), Profile(0.075, 1_000_000), np.random.default_rng(0)
    factors, distance = mixture(profiles, wanted)
    n = (np.arange(100_000) + 0.5) * 10
    densities = np.stack([density(profile, n) for profile in profiles])
    aim = density(wanted, n)
    for _ in range(20):
        other = rng.normal(scale=1e-3, size=len(factors))
        other = factors + other - other.mean()
        assert np.sqrt(((other @ densities - aim) ** 2).sum() / (aim**2).sum()) > distance


def test_more_snapshots_come_closer():
    """EDM2's Figure 5 in numbers: the distance falls as the square of their number."""
    distances = [mixture(grid(count), Profile(0.075, 1_000_000))[1] for count in (8, 16, 32, 64)]
    assert distances == pytest.approx([1.2e-2, 3.5e-3, 9e-4, 2.3e-4], rel=0.05)


def toy_training(run, snapshots: int = 16, steps: int = 400, batch_size: int = 8):
    """A small regression by Adam with noisy gradients; a third width is tracked beside those that are stored."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.SiLU(), torch.nn.Linear(32, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    averages = {std: PowerAverage(network, std) for std in (*TRACKED, 0.075, 0.15)}
    total = steps * batch_size
    for step in range(1, steps + 1):
        x = torch.randn(batch_size, 4)
        loss = (network(x) - torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1) - torch.randn(batch_size, 2)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen = step * batch_size
        for average in averages.values():
            average.update(network, seen, batch_size)
        if seen % (total // snapshots) == 0:
            post_hoc.save(run, seen, [averages[std] for std in TRACKED], {"inputs": 4})
    return averages


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def test_a_width_that_was_not_stored_comes_out_as_if_it_had_been_tracked(tmp_path):
    averages = toy_training(tmp_path)
    found = Snapshots.find(tmp_path)
    spread = (flat(averages[0.05].weights) - flat(averages[0.15].weights)).norm()
    for std in (0.075, 0.15):
        want = flat(averages[std].weights)
        off = (flat(found.average(std)[0]) - want).norm()
        assert off / want.norm() < 2.5e-4  # the rounding to float16 alone is 2.0e-4
        assert off < 0.004 * spread  # far closer than averages of other widths are


def test_a_stored_width_comes_back_as_it_was_stored(tmp_path):
    averages = toy_training(tmp_path, snapshots=4, steps=40)
    weights, distance = Snapshots.find(tmp_path).average(0.10)
    assert distance < 1e-6
    assert weights.keys() == averages[0.10].weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, averages[0.10].weights[name].half().float(), rtol=0, atol=1e-7)


def test_an_average_may_end_at_any_snapshot(tmp_path):
    toy_training(tmp_path / "long", snapshots=4, steps=40)
    toy_training(tmp_path / "short", snapshots=2, steps=20)
    early = Snapshots.find(tmp_path / "long", 160)
    assert early.images == 160 and {profile.images for profile in early.profiles.values()} == {80, 160}
    assert torch.equal(flat(early.average(0.07)[0]), flat(Snapshots.find(tmp_path / "short").average(0.07)[0]))
    with pytest.raises(ValueError, match="no snapshot of 100 images; near it are 80, 160, 240"):
        Snapshots.find(tmp_path / "long", 100)


def test_snapshots_are_thin_stay_and_are_written_again_with_the_same_bytes(tmp_path):
    averages = toy_training(tmp_path, snapshots=4, steps=40)
    before = {path: path.read_bytes() for path in (tmp_path / "snapshots").rglob("*.*")}
    parameters = sum(value.numel() for value in averages[0.05].weights.values())
    sizes = [len(data) for path, data in before.items() if path.suffix == ".safetensors"]
    assert len(sizes) == 8 and all(2 * parameters < size < 2 * parameters + 600 for size in sizes)
    toy_training(tmp_path, snapshots=4, steps=40)
    checkpoint.save(tmp_path, 320, {"network": {"a": torch.ones(1)}}, {}, keep=1)
    assert {path: path.read_bytes() for path in (tmp_path / "snapshots").rglob("*.*")} == before


def test_damaged_snapshots_are_named_and_partial_ones_passed_over(tmp_path):
    toy_training(tmp_path, snapshots=4, steps=40)
    (tmp_path / "snapshots" / ".000000000999.partial").mkdir()
    assert Snapshots.find(tmp_path).images == 320
    path = tmp_path / "snapshots" / "000000000160" / "power-0.05.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="000000000160 is damaged .*power-0.05.safetensors is not what was written"):
        Snapshots.find(tmp_path).average(0.07)
    (path.parent / "state.json").write_text("{")
    with pytest.raises(ValueError, match="000000000160 is damaged"):
        Snapshots.find(tmp_path)


def test_what_a_user_keeps_beside_snapshots_stays(tmp_path):
    toy_training(tmp_path, snapshots=4, steps=40)
    for name in ("my-notes", "000000000320-best", ".000000000999.partial"):
        (tmp_path / "snapshots" / name).mkdir()
    post_hoc.forget(tmp_path, 160)
    left = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert left == ["000000000080", "000000000160", "000000000320-best", "my-notes"]


def test_a_full_disk_is_said_and_leaves_nothing_half(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="snapshot of 80 images could not be written .*No space left.*same command again"):
        toy_training(tmp_path, snapshots=4, steps=40)
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_a_run_without_snapshots_says_how_to_have_them(tmp_path):
    with pytest.raises(ValueError, match="holds no snapshots; they are written when the recipe has a section `snapshots`"):
        Snapshots.find(tmp_path)
