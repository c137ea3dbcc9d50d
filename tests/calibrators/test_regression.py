"""Regression finds the combination of the stored steps that gives what is observed, and never runs away."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcache.calibrators.regression import regression, regression_weights
from fxcache.kernels import forecaster
from tests.calibrators import explicit
from tests.calibrators.windows import SEEDS, combine, products, vectors, window

COUNTS = st.integers(2, 8)
RIDGES = st.sampled_from([0.0, 1e-8, 1e-4, 1e-2, 1.0])


LIMITS = st.sampled_from([1.0, 3.0, math.inf])


def times_of(count: int) -> list[float]:
    return [float(-age * (age + 3)) for age in range(count)]


def weights_of(observation: torch.Tensor, stored: torch.Tensor, ridge: float, limit: float = 3.0) -> torch.Tensor:
    known = products(observation, stored)
    weights = regression_weights(window(times_of(len(stored)), 2.0, products=known), ridge, limit)
    return torch.tensor(weights, dtype=torch.float64)


def smooth_of(count: int, limit: float = 3.0) -> np.ndarray:
    """The weights of the parabola, or of what is left of it under the limit."""
    return explicit.taylorseer(times_of(count), 2.0, 2, limit)


@given(COUNTS, SEEDS)
def test_an_affine_combination_is_recovered(count, seed):
    drawn = vectors(count + 1, 32, seed)
    stored = drawn[:-1]
    wanted = drawn[-1, :count] / 2
    wanted = wanted + (1 - wanted.sum()) / count
    found = weights_of(wanted @ stored, stored, ridge=0.0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@given(COUNTS, SEEDS, RIDGES, LIMITS)
def test_they_are_the_least_squares_of_the_explicit_vectors(count, seed, ridge, limit):
    drawn = vectors(count + 1, 32, seed)
    observation, stored = drawn[0], drawn[1:]
    expected = explicit.regression(observation.numpy(), stored.numpy(), ridge, smooth_of(count, limit))
    np.testing.assert_allclose(weights_of(observation, stored, ridge, limit).numpy(), expected, rtol=1e-6, atol=1e-6)


@given(COUNTS, st.integers(1, 5), SEEDS, RIDGES)
def test_weights_sum_to_one(count, length, seed, ridge):
    drawn = vectors(count + 1, length, seed)
    found = weights_of(drawn[0], drawn[1:], ridge)
    assert float(found.sum()) == pytest.approx(1, abs=1e-9 * float(found.abs().sum()))


@given(COUNTS, SEEDS, RIDGES)
def test_what_equals_the_newest_step_is_the_newest_step(count, seed, ridge):
    stored = vectors(count, 16, seed)
    assert weights_of(stored[0], stored, ridge).tolist() == [1.0] + [0.0] * (count - 1)


@given(SEEDS, RIDGES)
def test_one_step_is_reused(seed, ridge):
    drawn = vectors(2, 16, seed)
    assert weights_of(drawn[0], drawn[1:], ridge).tolist() == [1.0]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=8), st.integers(0, 5), SEEDS, RIDGES)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30, 1e160])
def test_repeated_steps_stay_finite_and_bounded(scale, which, observed, seed, ridge):
    """Also windows in which everything is zero, or equal, or the observation is one of the stored steps."""
    different = torch.cat([torch.zeros(1, 3), vectors(5, 3, seed)]) * scale
    stored, observation = different[which], different[observed]
    found = weights_of(observation, stored, ridge)
    assert bool(found.isfinite().all())
    assert float(found.sum()) == pytest.approx(1, abs=1e-9 * float(found.abs().sum()))
    smooth = torch.from_numpy(smooth_of(len(which)))

    def error(weights: torch.Tensor) -> float:
        return float((weights @ stored / scale - observation / scale).norm())

    # what is minimized is at the weights of the curve their error
    newest = torch.eye(len(which), dtype=torch.float64)[0]
    assert error(found) <= 1.001 * error(smooth) + 1e-9 or torch.equal(found, newest)
    if ridge and not torch.equal(found, newest):
        mean_square = (stored / scale - observation / scale).square().sum(1).mean()
        assert float((found - smooth).square().sum() * ridge * mean_square) <= 1.001 * error(smooth) ** 2 + 1e-9


@given(SEEDS)
def test_copies_of_a_step_have_its_weight_together(seed):
    first, second, third = vectors(3, 8, seed)
    single = weights_of(first, torch.stack([second, third]), 0.0)
    shared = weights_of(first, torch.stack([second, third, third, third]), 0.0)
    assert float(shared[1:].sum()) == pytest.approx(float(single[1]), abs=1e-3)


@given(COUNTS, SEEDS, LIMITS)
def test_a_ridge_without_end_is_the_parabola_under_its_limit(count, seed, limit):
    drawn = vectors(count + 1, 16, seed)
    found = weights_of(drawn[0], drawn[1:], 1e10, limit)
    np.testing.assert_allclose(found.numpy(), smooth_of(count, limit), rtol=0, atol=1e-6)


@given(COUNTS, SEEDS)
def test_more_ridge_is_nearer_to_the_parabola(count, seed):
    drawn, smooth = vectors(count + 1, 4, seed), torch.from_numpy(smooth_of(count))
    ridges = (1e-8, 1e-4, 1e-2, 1.0, 100.0)
    distances = [float((weights_of(drawn[0], drawn[1:], ridge) - smooth).norm()) for ridge in ridges]
    assert all(nearer <= farther * (1 + 1e-9) + 1e-9 for farther, nearer in pairwise(distances))


@given(st.integers(3, 8), SEEDS)
def test_what_the_first_blocks_do_not_show_follows_the_curve(count, seed):
    """They have one direction; what is predicted moves along a line that has another one too."""
    times = times_of(count)
    direction, hidden = vectors(2, 12, seed)
    at = torch.tensor([*times, 2.0], dtype=torch.float64)[:, None]
    seen = at * direction
    weights = torch.tensor(regression_weights(window(times, 2.0, products=products(seen[-1], seen[:-1])), 0.03))
    torch.testing.assert_close(weights.double() @ (at[:-1] * hidden), at[-1] * hidden, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_without_numbers_the_newest_step_is_reused(bad):
    stored = vectors(3, 4, 0)
    assert weights_of(torch.full((4,), bad, dtype=torch.float64), stored, 1e-4).tolist() == [1.0, 0.0, 0.0]


def test_the_graph_names_it_with_its_ridge():
    drawn = vectors(4, 8, 0)
    given_window = window((4.0, 2.0, 1.0), 7.0, products=products(drawn[0], drawn[1:]))
    chosen = forecaster("regression 0.25")
    assert chosen.weights(given_window) == regression(0.25).weights(given_window)
    limited = forecaster("regression 0.25 3.0")
    assert limited.weights(given_window) == regression_weights(given_window, 0.25, 3.0) != chosen.weights(given_window)
    assert combine(chosen.weights(given_window), drawn[1:]).shape == (8,)
    assert chosen.needs_products and not chosen.needs_gram
