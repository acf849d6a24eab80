"""Random numbers by their place: the published generator, its independence of batches, and the distributions drawn from it."""

import numpy as np
import pytest
import torch
from scipy import stats

from cascade.stages.training import draws


def splitmix64(state: int, count: int) -> list[int]:
    """Steele, Lea & Flood's generator, one after the other in whole numbers."""
    mask, found = 2**64 - 1, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        found.append(z ^ (z >> 31))
    return found


def test_the_bits_are_those_of_the_published_generator():
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]  # its known answers
    starts = torch.tensor([1234567, 0, -1, 2**62])
    for start, row in zip(starts.tolist(), draws.bits(starts, 50).tolist(), strict=True):
        assert [value % 2**64 for value in row] == splitmix64(start % 2**64, 50)


def test_streams_differ_by_seed_purpose_and_number_and_by_nothing_else():
    numbers = torch.arange(1000)
    found = {(seed, purpose): draws.streams(seed, purpose, numbers) for seed in (0, 1, 2**40) for purpose in (2, 3)}
    assert len(torch.cat(list(found.values())).unique()) == 6000
    assert torch.equal(draws.streams(1, 3, torch.tensor([7, 500])), found[1, 3][[7, 500]])


@pytest.mark.parametrize("count", [12288, 192, 27, 1])
def test_numbers_do_not_depend_on_their_batch(count):
    streams = draws.streams(0, 2, torch.arange(16))
    for draw in (draws.normal, draws.uniform):
        whole = draw(streams, count)
        assert whole.shape == (16, count)
        for place in (0, 5, 15):
            assert torch.equal(draw(streams[place : place + 1], count)[0], whole[place])
        assert torch.equal(draw(streams.flip(0), count), whole.flip(0))


def test_numbers_follow_their_distributions():
    streams = draws.streams(3, 2, torch.arange(64))
    normal, uniform = draws.normal(streams, 4096).flatten().numpy(), draws.uniform(streams, 4096).flatten().numpy()
    assert normal.dtype == np.float32 and stats.kstest(normal.astype(float), "norm").pvalue > 0.001
    assert stats.kstest(uniform, "uniform").pvalue > 0.001
    assert stats.kurtosis(normal) == pytest.approx(0, abs=0.03) and np.abs(normal).max() > 4.5  # tails
    pairs = np.corrcoef(draws.normal(streams, 4096).numpy())  # between examples
    assert np.abs(pairs[~np.eye(64, dtype=bool)]).max() < 5 / 64
