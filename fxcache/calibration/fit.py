"""From measured changes to what the methods take: a polynomial, and a table of ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["fit_polynomial", "mean_ratios"]


def fit_polynomial(points: Sequence[tuple[float, float]], degree: int) -> tuple[tuple[float, ...], float]:
    """Return the least-squares polynomial, highest power first, and the share of the variance that it explains.

    With fewer than degree + 1 different abscissas the degree is lower.

    >>> coefficients, explained = fit_polynomial([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)], 1)
    >>> [round(coefficient, 6) for coefficient in coefficients], round(explained, 6)
    ([2.0, 1.0], 1.0)
    """
    x, y = torch.tensor(points, dtype=torch.float64).unbind(1)
    degree = min(degree, len(set(x.tolist())) - 1)
    scale = float(x.abs().max()) or 1.0  # powers of small numbers would have nothing left to fit
    powers = torch.stack([(x / scale) ** power for power in range(degree, -1, -1)], dim=1)
    solution = torch.linalg.lstsq(powers, y[:, None], driver="gelsd").solution[:, 0]
    coefficients = [float(value) / scale ** (degree - place) for place, value in enumerate(solution)]
    missed = float(((powers @ solution - y) ** 2).sum())
    spread = float(((y - y.mean()) ** 2).sum())
    return tuple(coefficients), 1.0 - missed / spread if spread else 1.0


def mean_ratios(series: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], float]:
    """Return the geometric mean of equally long rows of ratios, and the largest deviation of a row from it.

    >>> ratios, deviation = mean_ratios([(0.5, 1.0), (2.0, 1.0)])
    >>> [round(ratio, 6) for ratio in ratios], round(deviation, 6)
    ([1.0, 1.0], 1.0)
    """
    logarithms = torch.tensor(series, dtype=torch.float64).log()
    means = logarithms.mean(0)
    deviation = float((logarithms - means).abs().max())
    return tuple(map(math.exp, means.tolist())), math.expm1(deviation)
