"""TaylorSeer is exact on polynomials of its order, whatever the distances, and takes the order that forecasts best."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcache.calibrators.taylorseer import lagrange_weights, taylor_weights, taylorseer
from fxcache.kernels import forecaster
from tests.calibrators import explicit
from tests.calibrators.windows import SEEDS, combine, products, schedules, vectors, window

ORDERS = st.integers(1, 4)


@given(schedules(), ORDERS, SEEDS)
def test_polynomials_of_the_order_are_exact_once_there_are_enough_steps(schedule, order, seed):
    times, now = schedule
    degree = min(order, len(times) - 1)
    coefficients = vectors(degree + 1, 3, seed)
    scale = max(map(abs, [*times, now])) or 1.0
    powers = np.vander(np.array([*times, now]) / scale, degree + 1)
    values = torch.from_numpy(powers) @ coefficients
    weights = taylor_weights(window(times, now), order)
    rounding = 1e-12 * sum(map(abs, weights)) * float(values.abs().max())
    torch.testing.assert_close(combine(weights, values[:-1]), values[-1], rtol=0, atol=rounding)


@given(schedules(least=2), ORDERS)
def test_one_degree_more_is_not(schedule, order):
    times, now = schedule
    degree = min(order, len(times) - 1) + 1
    at = torch.tensor([*times, now], dtype=torch.float64)[:, None] - times[0]
    values = at / at.abs().max()
    error = combine(taylor_weights(window(times, now), order), values[:-1] ** degree) - values[-1] ** degree
    assert float(error.abs()) > 1e-9


@given(schedules(), ORDERS)
def test_the_curve_is_the_one_numpy_fits_to_the_newest_steps(schedule, order):
    times, now = schedule
    weights = taylor_weights(window(times, now), order)
    expected = explicit.taylorseer(times, now, order)
    np.testing.assert_allclose(weights, expected, rtol=1e-8, atol=1e-8 * sum(map(abs, weights)))


@given(schedules(), ORDERS)
def test_weights_sum_to_one(schedule, order):
    times, now = schedule
    weights = taylor_weights(window(times, now), order)
    assert sum(weights) == pytest.approx(1, abs=1e-12 * sum(map(abs, weights)))


@given(schedules(), st.integers(0, 7))
def test_at_a_stored_time_the_stored_value_comes_back(schedule, which):
    times, _ = schedule
    which %= len(times)
    expected = [0.0] * len(times)
    expected[which] = 1.0
    assert lagrange_weights(times, times[which]) == expected


@given(schedules(), ORDERS, SEEDS, st.sampled_from([1, 2, 40]))
def test_with_an_observation_the_order_with_the_smallest_error_is_taken(schedule, order, seed, length):
    times, now = schedule
    drawn = vectors(len(times) + 1, length, seed)
    observation, stored = drawn[0], drawn[1:]
    weights = taylor_weights(window(times, now, products=products(observation, stored)), order)
    expected = explicit.best_taylorseer(times, now, order, observation.numpy(), stored.numpy())
    least = float(np.linalg.norm(expected @ stored.numpy() - observation.numpy()))
    taken = float((combine(weights, stored) - observation).norm())
    assert taken == pytest.approx(least, rel=1e-6, abs=1e-9)


@given(schedules(least=3), SEEDS)
def test_what_the_observation_shows_of_a_curve_is_followed(schedule, seed):
    times, now = schedule
    at = torch.tensor([*times, now], dtype=torch.float64)[:, None] / max(map(abs, [*times, now]))
    start, slope, bend = vectors(3, 5, seed)
    straight = start + at * slope
    for curve in (straight, straight + at**2 * bend):
        weights = taylor_weights(window(times, now, products=products(curve[-1], curve[:-1])), order=2)
        atol = 1e-6 * float(curve.abs().max())
        torch.testing.assert_close(combine(weights, curve[:-1]), curve[-1], rtol=0, atol=atol)


def test_the_graph_names_it_with_its_order():
    chosen = forecaster("taylorseer 2")
    given_window = window((4.0, 2.0, 1.0, 0.0), 7.0)
    assert chosen.weights(given_window) == taylorseer(2).weights(given_window) == taylor_weights(given_window, 2)
    assert not chosen.needs_products and not chosen.needs_gram
