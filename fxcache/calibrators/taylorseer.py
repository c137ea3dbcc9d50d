"""TaylorSeer: continue the polynomial through the last computed steps.

    y(t) = sum_i w_i(t) y_i,    w_i(t) = prod_{j != i} (t - t_j) / (t_i - t_j)

This is the Taylor series whose derivatives are divided differences, written for the values themselves: exact on
polynomials of its order whatever the distances between the computed steps, of order 1 from the second one on.
Where the first blocks were observed, each order up to the one asked for forecasts them too, and the order whose
forecast is the nearest to what they really gave is taken: a polynomial through steps that lie close together is worth
little far away.

Source: TaylorSeer (arXiv 2503.06923), which has one divisor for all orders and is exact at order 1 alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from fxcache.kernels import Forecaster, Window, forecast_error


def taylorseer(order: float) -> Forecaster:
    """Return the forecaster of at most this order."""
    return Forecaster(lambda window: taylor_weights(window, int(order)))


def taylor_weights(window: Window, order: int) -> list[float]:
    """Weights of the polynomial through the newest steps, newest first; the other steps weigh nothing."""
    count = len(window.times)
    candidates = [
        [*lagrange_weights(window.times[:used], window.now), *[0.0] * (count - used)]
        for used in range(1, min(order + 1, count) + 1)
    ]
    products = window.products
    if products is None:
        return candidates[-1]
    return min(candidates, key=lambda weights: forecast_error(products, weights))


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
