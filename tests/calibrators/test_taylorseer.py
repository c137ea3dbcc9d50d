"""TaylorSeer is exact on polynomials of its order, whatever the distances, and takes the order that forecasts best."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcache.calibrators.taylorseer import gain, lagrange_weights, taylor_weights, taylorseer
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


LIMITS = st.sampled_from([1.0, 1.5, 3.0, 7.0, 31.0])


@given(schedules(), ORDERS, LIMITS)
def test_the_order_is_the_highest_whose_gain_keeps_the_limit(schedule, order, limit):
    times, now = schedule
    weights = taylor_weights(window(times, now), order, limit)
    assert gain(weights) <= limit * (1 + 1e-6)
    np.testing.assert_allclose(weights, explicit.taylorseer(times, now, order, limit), rtol=1e-8, atol=1e-7)


@given(schedules(least=2), st.sampled_from([0.5, 1.0, 4.0]))
def test_a_line_under_a_limit_of_three_reaches_as_far_as_its_steps_lie_apart(schedule, times_as_far):
    times, _ = schedule
    now = times[0] + times_as_far * (times[0] - times[1])
    line = taylor_weights(window(times, now), 1)
    reached = taylor_weights(window(times, now), 1, 3.0)
    assert reached == (line if times_as_far <= 1 else [1.0, *[0.0] * (len(times) - 1)])


@given(schedules(least=3), LIMITS, SEEDS)
def test_observed_first_blocks_choose_among_the_orders_that_keep_the_limit(schedule, limit, seed):
    times, now = schedule
    drawn = vectors(len(times) + 1, 40, seed)
    observation, stored = drawn[0], drawn[1:]
    weights = taylor_weights(window(times, now, products=products(observation, stored)), 3, limit)
    expected = explicit.best_taylorseer(times, now, 3, observation.numpy(), stored.numpy(), limit)
    np.testing.assert_allclose(weights, expected, rtol=1e-8, atol=1e-7)


def test_the_graph_names_it_with_its_order():
    chosen = forecaster("taylorseer 2")
    given_window = window((4.0, 2.0, 1.0, 0.0), 7.0)
    assert chosen.weights(given_window) == taylorseer(2).weights(given_window) == taylor_weights(given_window, 2)
    assert not chosen.needs_products and not chosen.needs_gram
    assert forecaster("taylorseer 2 3.0").weights(given_window) == taylor_weights(given_window, 2, 3.0)
    assert taylor_weights(given_window, 2, 3.0) != taylor_weights(given_window, 2)
    assert forecaster("taylorseer 2 inf").weights(given_window) == taylor_weights(given_window, 2)
