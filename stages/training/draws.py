"""Random numbers by their place: what an example draws is a function of (seed, purpose, number), computed on any device.

SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"): output k of the stream that starts at `s`
is `mix(s + k * GAMMA)`, so every output is computed by itself, for all examples of a batch at once. No generator has a state
that would have to be saved, and none is seeded from the host while an accelerator works.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GAMMA, _FIRST, _SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""The published constants as signed numbers: torch multiplies int64 modulo 2^64."""


def streams(seed: int, purpose: int, numbers: Tensor) -> Tensor:
    """Starts of the streams of examples, int64 of the shape of `numbers`: one per seed, purpose and number.

    Each is drawn by the one before, as a generator is split: the purpose from the seed's stream, the number from the purpose's.
    """
    of_seed, of_purpose = torch.tensor([seed % 2**63, purpose]) * _GAMMA
    return _mix(_mix(_mix(of_seed) + of_purpose) + numbers * _GAMMA)


def bits(streams: Tensor, count: int) -> Tensor:
    """The first outputs of streams [B], int64 [B, count]: 64 random bits each."""
    places = torch.arange(1, count + 1, device=streams.device)
    return _mix(streams[:, None] + places * _GAMMA)


def uniform(streams: Tensor, count: int) -> Tensor:
    """Numbers in [0, 1), float64 [B, count], of 53 random bits each."""
    return _shifted(bits(streams, count), 11).double() * 2.0**-53


def normal(streams: Tensor, count: int) -> Tensor:
    """Unit Gaussian numbers, float32 [B, count], by Box and Muller's transform of pairs: at most 6.7 in size."""
    drawn = bits(streams, (count + 1) // 2)
    first, second = (_shifted(drawn, 32).float() + 0.5) * 2.0**-32, (drawn & 0xFFFFFFFF).float() * (2.0**-32 * 2 * math.pi)
    radius = (-2 * first.log()).sqrt()
    return torch.cat([radius * second.cos(), radius * second.sin()], dim=1)[:, :count]


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, places: int) -> Tensor:
    """Bits moved to the right with zeros moved in; torch's own shift of int64 repeats the sign."""
    return (x >> places) & (2 ** (64 - places) - 1)
