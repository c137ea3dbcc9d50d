"""Regression: the first blocks, which run on every step, say how the stored steps combine into the present one.

    w = argmin | r - sum_i w_i h_i |^2 + a | w - p |^2     with  sum_i w_i = 1

where r is what the first blocks add now and h_i what they added at the stored steps; the same weights then combine
what the middle blocks added. Irregular schedules are no special case, and what changes from step to step without being
smooth in time is followed as far as the first blocks show it. What they do not show is left to p, the weights of the
parabola through the newest steps under a limit of their gain (`taylorseer`). a is a share of the mean square distance:
steps which are nearly combinations of each other do not get large weights of opposite sign.

With D_ij = (h_i - r)(h_j - r) the minimum is w = (D + a)^-1 (a p + m 1), with m such that they sum to one. Without p:
the weights of locally linear embedding (Roweis and Saul, Science 2000).
"""

from __future__ import annotations

import math

from fxcache.calibrators.taylorseer import unobserved_weights
from fxcache.kernels import Forecaster, Window

_ORDER = 2
"""Of the polynomial that gives p: a parabola."""
_LEAST_RIDGE = 1e-12
"""Without any, two equal steps, or more steps than dimensions, leave a matrix that has no inverse."""


def regression(ridge: float, limit: float = math.inf) -> Forecaster:
    """Return the forecaster; ``ridge`` is that share, ``limit`` that of the gain of the parabola."""
    return Forecaster(lambda window: regression_weights(window, ridge, limit), needs_products=True)


def regression_weights(window: Window, ridge: float, limit: float = math.inf) -> list[float]:
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
    share = max(ridge, _LEAST_RIDGE)
    for i in range(count):
        scaled[i][i] += share
    smooth = unobserved_weights(window, _ORDER, limit)
    toward, ones = _solutions(scaled, [[share * weight for weight in smooth], [1.0] * count])
    missing = (1.0 - sum(toward)) / sum(ones)
    return [weight + missing * one for weight, one in zip(toward, ones, strict=True)]


def _solutions(matrix: list[list[float]], rights: list[list[float]]) -> list[list[float]]:
    """Return x with ``matrix @ x = right`` for each of them; all are overwritten. The matrix is positive definite.

    By elimination in numbers: every reused step waits for it, and a linear algebra library takes longer to be called.
    """
    count = len(matrix)
    for i, pivot in enumerate(matrix):
        for j in range(i + 1, count):
            factor = matrix[j][i] / pivot[i]
            for k in range(i, count):
                matrix[j][k] -= factor * pivot[k]
            for right in rights:
                right[j] -= factor * right[i]
    for right in rights:
        for i in reversed(range(count)):
            known = sum(matrix[i][k] * right[k] for k in range(i + 1, count))
            right[i] = (right[i] - known) / matrix[i][i]
    return rights
