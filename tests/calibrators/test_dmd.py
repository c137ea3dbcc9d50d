"""DMD continues sums of exponentials, as the decomposition of the explicit snapshots does, and is always finite."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fxcache.calibrators.dmd import dmd, dmd_weights
from fxcache.calibrators.taylorseer import gain, taylor_weights
from fxcache.kernels import forecaster
from tests.calibrators import explicit
from tests.calibrators.windows import SEEDS, combine, gram, schedules, vectors, window

DIM = 24
FACTORS = {
    "one that decays": ([0.8], []),
    "one that grows": ([1.25], []),
    "constant and decaying": ([1.0, 0.6], []),
    "growing and decaying": ([1.2, 0.7], []),
    "three": ([1.1, 0.75, 0.4], []),
    "a turning pair": ([], [(0.95, 0.6)]),
    "a pair that grows": ([], [(1.1, 1.0)]),
    "a constant and a pair": ([1.0], [(0.9, 1.2)]),
    "two pairs": ([], [(1.0, 0.7), (0.9, 1.9)]),
}
"""Real factors per period; size and angle of those that come in pairs."""


def exponentials(name: str, seed: int):
    """A curve in DIM dimensions that moves by these factors, and how many numbers describe its state."""
    real, turning = FACTORS[name]
    parts = vectors(len(real) + 2 * len(turning), DIM, seed).numpy()

    def at(time: float) -> torch.Tensor:
        value = sum((factor**time * part for factor, part in zip(real, parts, strict=False)), np.zeros(DIM))
        for number, (size, angle) in enumerate(turning):
            cosine, sine = parts[len(real) + 2 * number :][:2]
            value = value + size**time * (np.cos(angle * time) * cosine + np.sin(angle * time) * sine)
        return torch.from_numpy(value)

    return at, len(parts)


def forecast(snapshots: torch.Tensor, times, now: float, rank: int = 0, ridge: float = 0.0) -> torch.Tensor:
    return combine(dmd_weights(window(times, now, gram=gram(snapshots)), rank, ridge), snapshots)


@pytest.mark.parametrize("name", FACTORS)
@given(st.integers(4, 8), st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.75]), st.sampled_from([1.0, -12.5, 3.0]), SEEDS)
def test_one_snapshot_more_than_exponentials_is_enough(name, count, ahead, period, seed):
    curve, states = exponentials(name, seed)
    count = max(count, states + 1)
    snapshots = torch.stack([curve(-age) for age in range(count)])
    times = [5.0 - age * period for age in range(count)]
    found = forecast(snapshots, times, 5.0 + ahead * period, rank=states)
    torch.testing.assert_close(
        found, curve(ahead), rtol=0, atol=1e-6 * float(snapshots.abs().max() + found.abs().max())
    )


@pytest.mark.parametrize("name", ["three", "a constant and a pair", "two pairs"])
def test_one_snapshot_fewer_is_not(name):
    curve, states = exponentials(name, 0)
    count = max(4, states)
    snapshots = torch.stack([curve(-age) for age in range(count)])
    error = float((forecast(snapshots, [float(-age) for age in range(count)], 1.0) - curve(1.0)).norm())
    assert (error > 1e-3) == (count < states + 1)


@pytest.mark.parametrize("name", FACTORS)
def test_without_a_rank_what_the_snapshots_resolve_is_kept(name):
    curve, states = exponentials(name, 1)
    snapshots = torch.stack([curve(-age) for age in range(max(4, states + 1))])
    times = [float(-age) for age in range(len(snapshots))]
    for ridge in (0.0, 1e-8):
        found = forecast(snapshots, times, 1.5, ridge=ridge)
        torch.testing.assert_close(found, curve(1.5), rtol=0, atol=1e-5 * float(snapshots.abs().max()))


@given(
    st.integers(4, 8), st.integers(1, 7), st.sampled_from([0.0, 1e-8, 1e-3, 0.1]), st.sampled_from([1.0, 2.5]), SEEDS
)
def test_it_is_the_decomposition_of_the_explicit_snapshots(count, rank, ridge, ahead, seed):
    """With its rank, and with the ridge added to every singular value."""
    rank = min(rank, count - 1)
    curve, _ = exponentials("two pairs", seed)
    noise = vectors(count, DIM, seed + 1) * 0.3
    snapshots = torch.stack([curve(-age) for age in range(count)]) + noise
    assume(float(torch.linalg.cond(snapshots)) < 1e3)
    times = [float(-age) for age in range(count)]
    found = forecast(snapshots, times, ahead, rank, ridge)
    expected = explicit.dmd(times, ahead, snapshots.numpy(), rank, ridge) @ snapshots.numpy()
    atol = 1e-5 * float(snapshots.abs().max() + found.abs().max())
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=atol)


@given(schedules(least=2), SEEDS)
def test_uneven_steps_are_a_straight_line(schedule, seed):
    times, now = schedule
    gaps = [a - b for a, b in pairwise(times)]
    assume(len(gaps) < 3 or len(set(gaps[:3])) > 1)
    line = taylor_weights(window(times, now), 1)
    assert dmd_weights(window(times, now, gram=gram(vectors(len(times), 4, seed))), 0, 1e-8) == line


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_than_four_are_a_straight_line(count):
    times = [float(-age) for age in range(count)]
    given_window = window(times, 1.0, gram=gram(vectors(count, 4, 0)))
    assert dmd_weights(given_window, 0, 0.0) == [[1.0], [2.0, -1.0], [2.0, -1.0, 0.0]][count - 1]


@given(st.integers(4, 7), st.integers(1, 3), SEEDS)
def test_only_the_evenly_spaced_newest_count(even, uneven, seed):
    times = [float(-age) for age in range(even)]
    times += [times[-1] - 2.5 - age for age in range(min(uneven, 8 - even))]
    snapshots = vectors(len(times), DIM, seed)
    all_products = gram(snapshots)
    weights = dmd_weights(window(times, 1.0, gram=all_products), 0, 1e-8)
    assert weights[:even] == dmd_weights(window(times[:even], 1.0, gram=all_products[:even, :even]), 0, 1e-8)
    assert weights[even:] == [0.0] * (len(times) - even)


def test_without_products_it_is_a_straight_line():
    assert dmd_weights(window((3.0, 2.0, 1.0, 0.0), 5.0), 0, 0.0) == [3.0, -2.0, 0.0, 0.0]


@given(st.integers(4, 8), st.sampled_from([0.5, 1.0, 4.0]), st.sampled_from([1.0, 2.0, 3.0, 9.0]), SEEDS)
def test_above_the_limit_it_is_the_line_that_keeps_it(count, ahead, limit, seed):
    times = [float(-age) for age in range(count)]
    given_window = window(times, ahead, gram=gram(vectors(count, DIM, seed)))
    weights, free = dmd_weights(given_window, 0, 1e-8, limit), dmd_weights(given_window, 0, 1e-8)
    assert gain(weights) <= limit * (1 + 1e-6)
    assert weights == (free if gain(free) <= limit else taylor_weights(given_window, 1, limit))


SCALES = st.sampled_from([0.0, 1e-200, 1e-30, 1e-3, 1.0, 1e3, 1e30, 1e150, 1e160])


@given(
    st.lists(st.tuples(st.integers(0, 3), SCALES), min_size=4, max_size=8),
    st.integers(1, 7),
    st.integers(0, 7),
    st.sampled_from([0.0, 1e-8, 1e-2]),
    st.sampled_from([0.5, 1.0, 7.0, 500.0, 1e6]),
    SEEDS,
)
def test_garbage_gives_weights_that_float32_can_hold(entries, length, rank, ridge, ahead, seed):
    different = vectors(4, length, seed)
    snapshots = torch.stack([different[number] * scale for number, scale in entries])
    times = [float(-age) for age in range(len(entries))]
    weights = dmd_weights(window(times, ahead, gram=gram(snapshots)), rank, ridge)
    assert len(weights) == len(entries)
    assert bool(torch.tensor(weights, dtype=torch.float32).isfinite().all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gram_that_is_not_finite_is_a_straight_line(bad):
    products = gram(vectors(4, 6, 0))
    products[1, 2] = products[2, 1] = bad
    assert dmd_weights(window((3.0, 2.0, 1.0, 0.0), 4.0, gram=products), 0, 1e-8) == [2.0, -1.0, 0.0, 0.0]


@given(st.integers(4, 8), SEEDS)
def test_equal_snapshots_stay_as_they_are(count, seed):
    snapshots = vectors(1, DIM, seed).repeat(count, 1)
    found = forecast(snapshots, [float(-age) for age in range(count)], 2.5, ridge=1e-8)
    torch.testing.assert_close(found, snapshots[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3, 7])
def test_a_rank_is_that_many_exponentials(rank):
    """Forecasts at whole periods of k exponentials obey one linear recursion of k terms."""
    snapshots = vectors(8, DIM, 3)
    times = [float(-age) for age in range(8)]
    ahead = torch.stack([forecast(snapshots, times, float(step), rank, 1e-8) for step in range(1, 12)])
    singular = torch.linalg.svdvals(ahead)
    assert int((singular > 1e-7 * singular[0]).sum()) == rank


def test_the_graph_names_it_with_its_numbers():
    given_window = window((4.0, 3.0, 2.0, 1.0), 5.5, gram=gram(vectors(4, 8, 0)))
    chosen = forecaster("dmd 2 0.001")
    assert chosen.weights(given_window) == dmd(2, 0.001).weights(given_window) == dmd_weights(given_window, 2, 0.001)
    assert chosen.needs_gram and not chosen.needs_products
