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

import torch

from fxcache.kernels import Forecaster, Window


def regression(ridge: float) -> Forecaster:
    """Return the forecaster; ``ridge`` is that share."""
    return Forecaster(lambda window: regression_weights(window, ridge), needs_products=True)


def regression_weights(window: Window, ridge: float) -> list[float]:
    """Weights of the nearest combination of the stored steps, newest first."""
    count = len(window.times)
    products = window.products
    if count == 1 or products is None:
        return [1.0, *[0.0] * (count - 1)]
    distances = products[1:, 1:]
    scale = distances.diagonal().mean()
    if not scale > 0:
        return [1.0, *[0.0] * (count - 1)]
    if distances[0, 0] == 0:  # nothing has changed since the newest step
        return [1.0, *[0.0] * (count - 1)]
    identity = torch.eye(count, dtype=distances.dtype)
    weights = torch.linalg.solve(distances / scale + ridge * identity, identity.new_ones(count))
    return [float(weight) for weight in weights / weights.sum()]
