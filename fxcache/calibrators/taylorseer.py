"""TaylorSeer: continue the polynomial through the last computed steps.

    y(t) = sum_i w_i(t) y_i,    w_i(t) = prod_{j != i} (t - t_j) / (t_i - t_j)

This is the Taylor series whose derivatives are divided differences, written for the values themselves: exact on
polynomials of its order whatever the distances between the computed steps, of order 1 from the second one on.

A polynomial through steps that lie close together is worth little far away: an error e of every stored value becomes
one of up to ``gain(w) e``. So the order is the highest, up to the one asked for, whose gain keeps a limit. The gain of
order 1 at a distance h behind two steps that lie g apart is 1 + 2 h / g: a limit of 3 lets a straight line reach as far
ahead as its two steps lie apart. Where the first blocks were observed, each order that keeps the limit forecasts them
too, and the one that comes nearest to what they really gave is taken.

Source: TaylorSeer (arXiv 2503.06923), which has one divisor for all orders and is exact at order 1 alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fxcache.kernels import Forecaster, Window, forecast_error

_ROUNDING = 1e-9


def taylorseer(order: float, limit: float = math.inf) -> Forecaster:
    """Return the forecaster of at most this order and this gain."""
    return Forecaster(lambda window: taylor_weights(window, int(order), limit))


def taylor_weights(window: Window, order: int, limit: float = math.inf) -> list[float]:
    """Weights of the polynomial through the newest steps, newest first; the other steps weigh nothing."""
    candidates, products = _polynomials(window, order, limit), window.products
    if products is None:
        return candidates[-1]
    return min(candidates, key=lambda weights: forecast_error(products, weights))


def unobserved_weights(window: Window, order: int, limit: float) -> list[float]:
    """The same, whatever the first blocks show."""
    return _polynomials(window, order, limit)[-1]


def _polynomials(window: Window, order: int, limit: float) -> list[list[float]]:
    """Weights of every order up to this one that keeps the limit, the lowest first."""
    count = len(window.times)
    found = (
        [*lagrange_weights(window.times[:used], window.now), *[0.0] * (count - used)]
        for used in range(1, min(order + 1, count) + 1)
    )
    return [weights for weights in found if within(weights, limit)]


def gain(weights: Sequence[float]) -> float:
    """By how much a forecast multiplies an error of the stored values, at most; 1 where one of them is reused.

    >>> gain([2.0, -1.0])
    3.0
    """
    return sum(map(abs, weights))


def within(weights: Sequence[float], limit: float) -> bool:
    """Return whether the gain keeps the limit, but for rounding: weights of one stored value always do."""
    return gain(weights) <= limit * (1 + _ROUNDING)


def lagrange_weights(times: Sequence[float], now: float) -> list[float]:
    """Values at ``now`` of the polynomials that are 1 at one of the times and 0 at the others.

    >>> lagrange_weights([4.0, 1.0], 5.5)
    [1.5, -0.5]
    """
    weights = []
    for i, own in enumerate(times):
        weight = 1.0
        for j, other in enumerate(times):
            if i != j:
                weight *= (now - other) / (own - other)
        weights.append(weight)
    return weights
