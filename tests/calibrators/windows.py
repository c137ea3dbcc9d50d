"""Windows for the calibrators: times that a generation may have computed at, and products of given vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from fxcache.kernels import Window

SEEDS = st.integers(0, 2**31)


@st.composite
def schedules(draw: st.DrawFn, least: int = 1, most: int = 8) -> tuple[tuple[float, ...], float]:
    """Times of computed steps, newest first, and a later one; all gaps differ, and time may run down."""
    gaps = draw(st.lists(st.integers(1, 6), min_size=least, max_size=most))
    scale = draw(st.sampled_from([1.0, -1.0, 0.125, -37.5]))
    start = draw(st.integers(-20, 20))
    times = [float(start)]
    for gap in gaps[1:]:
        times.append(times[-1] - gap)
    return tuple(scale * time for time in times), scale * (start + gaps[0])


def vectors(count: int, length: int, seed: int) -> Tensor:
    return torch.randn(count, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(values: Tensor) -> Tensor:
    return values @ values.T


def products(observation: Tensor, stored: Tensor) -> Tensor:
    """What `residual_products` returns: of the observation, and of the stored ones relative to it."""
    return gram(torch.stack([observation, *(entry - observation for entry in stored)]))


def combine(weights: Sequence[float], values: Tensor) -> Tensor:
    assert len(weights) == len(values)
    return torch.tensor(weights, dtype=values.dtype) @ values


def window(times: Sequence[float], now: float, **known: Tensor) -> Window:
    return Window(tuple(times), now, **{name: value.tolist() for name, value in known.items()})
