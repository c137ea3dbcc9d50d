"""FoCa: its docstring recomputed step by step, exact on straight lines, and the order that its error really has."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcache.calibrators.foca import foca_weights
from fxcache.calibrators.taylorseer import gain, taylor_weights
from fxcache.kernels import forecaster
from tests.calibrators import explicit
from tests.calibrators.windows import SEEDS, combine, schedules, vectors, window


@given(schedules())
def test_the_weights_are_the_formula(schedule):
    times, now = schedule
    weights = foca_weights(window(times, now))
    np.testing.assert_allclose(weights, explicit.foca(times, now), rtol=1e-10, atol=1e-10 * sum(map(abs, weights)))
    assert weights[3:] == [0.0] * max(0, len(times) - 3)


@given(schedules(least=2), SEEDS)
def test_straight_lines_are_exact(schedule, seed):
    times, now = schedule
    at = torch.tensor([*times, now], dtype=torch.float64)[:, None] / max(map(abs, [*times, now]))
    start, slope = vectors(2, 4, seed)
    line = start + at * slope
    weights = foca_weights(window(times, now))
    torch.testing.assert_close(combine(weights, line[:-1]), line[-1], rtol=0, atol=1e-12 * (1 + sum(map(abs, weights))))
    assert sum(weights) == pytest.approx(1, abs=1e-12 * sum(map(abs, weights)))


@given(schedules(least=1, most=1))
def test_one_step_is_reused(schedule):
    times, now = schedule
    assert foca_weights(window(times, now)) == [1.0]


def error(weights_of, gaps: tuple[float, ...], forward: float, size: float) -> float:
    """On a smooth curve, with all distances scaled by ``size``."""
    times = (0.3, 0.3 - gaps[0] * size, 0.3 - (gaps[0] + gaps[1]) * size)
    now = 0.3 + forward * size

    def curve(t: float) -> float:
        return math.exp(t) + math.sin(3 * t)

    weights = weights_of(window(times, now))
    return abs(sum(w * curve(t) for w, t in zip(weights, times, strict=True)) - curve(now))


GAPS = [(1.0, 1.0), (1.3, 0.7), (0.5, 2.0), (3.0, 1.0)]


@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize("forward", [0.5, 1.0, 2.0])
def test_half_the_distance_is_a_quarter_of_the_error(gaps, forward):
    """As for the straight line, and not an eighth as for the parabola: the slope at the end is not known."""
    sizes = [0.2 * 0.5**level for level in range(6, 9)]
    for weights_of, falls in (
        (foca_weights, 4),
        (lambda w: taylor_weights(w, 1), 4),
        (lambda w: taylor_weights(w, 2), 8),
    ):
        errors = [error(weights_of, gaps, forward, size) for size in sizes]
        assert [a / b for a, b in pairwise(errors)] == pytest.approx([falls] * 2, rel=0.05)


@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize("forward", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_the_error_is_smaller_than_that_of_the_straight_line(gaps, forward):
    small = 0.002
    assert error(foca_weights, gaps, forward, small) < 0.99 * error(
        lambda w: taylor_weights(w, 1), gaps, forward, small
    )


@given(schedules(), st.sampled_from([1.0, 2.0, 3.0, 9.0]))
def test_above_the_limit_it_is_the_line_that_keeps_it(schedule, limit):
    times, now = schedule
    weights = foca_weights(window(times, now), limit)
    assert gain(weights) <= limit * (1 + 1e-6)
    free = foca_weights(window(times, now))
    kept = gain(free) <= limit
    assert weights == (free if kept else taylor_weights(window(times, now), 1, limit))


def test_the_graph_names_it():
    given_window = window((4.0, 2.0, 1.0, 0.0), 7.0)
    assert forecaster("foca 3.0").weights(given_window) == foca_weights(given_window, 3.0) != foca_weights(given_window)
    assert forecaster("foca").weights(given_window) == foca_weights(given_window)
