"""Regression: the first blocks, which run on every step, say how the stored steps combine into the present one.

    w = argmin | r - sum_i w_i h_i |^2     with  sum_i w_i = 1

where r is what the first blocks add now and h_i what they added at the stored steps; the same weights then combine
what the middle blocks added. No axis of time is needed, irregular schedules are no special case, and what changes
from step to step without being smooth in time is followed as far as the first blocks show it.

With D_ij = (h_i - r)(h_j - r) the minimum is w = D^-1 1 / (1' D^-1 1): the weights of locally linear embedding
(Roweis and Saul, Science 2000). A share of the mean square distance is added to the diagonal, so that steps which
are nearly combinations of each other do not get large weights of opposite sign.
"""

from __future__ import annotations

import math

from fxcache.kernels import Forecaster, Window

_LEAST_RIDGE = 1e-12
"""Without any, two equal steps, or more steps than dimensions, leave a matrix that has no inverse."""


def regression(ridge: float) -> Forecaster:
    """Return the forecaster; ``ridge`` is that share."""
    return Forecaster(lambda window: regression_weights(window, ridge), needs_products=True)


def regression_weights(window: Window, ridge: float) -> list[float]:
    """Weights of the nearest combination of the stored steps, newest first."""
    count = len(window.times)
    products = window.products
    if count == 1 or products is None:
        return [1.0, *[0.0] * (count - 1)]
    scale = sum(products[i][i] for i in range(1, count + 1)) / count
    if not 0.0 < scale < math.inf:
        return [1.0, *[0.0] * (count - 1)]
    if products[1][1] == 0:  # nothing has changed since the newest step
        return [1.0, *[0.0] * (count - 1)]
    scaled = [[product / scale for product in row[1:]] for row in products[1:]]
    for i in range(count):
        scaled[i][i] += max(ridge, _LEAST_RIDGE)
    weights = _solution(scaled)
    total = sum(weights)
    return [weight / total for weight in weights]


def _solution(matrix: list[list[float]]) -> list[float]:
    """Return x with ``matrix @ x = 1``, for a positive definite matrix, which is overwritten.

    By elimination in numbers: every reused step waits for it, and a linear algebra library takes longer to be called.
    """
    count = len(matrix)
    right = [1.0] * count
    for i, pivot in enumerate(matrix):
        for j in range(i + 1, count):
            factor = matrix[j][i] / pivot[i]
            for k in range(i, count):
                matrix[j][k] -= factor * pivot[k]
            right[j] -= factor * right[i]
    for i in reversed(range(count)):
        known = sum(matrix[i][k] * right[k] for k in range(i + 1, count))
        right[i] = (right[i] - known) / matrix[i][i]
    return right
