"""The polynomial and the table, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from fxcache.calibration.fit import fit_polynomial, mean_ratios


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_the_polynomial_is_that_of_numpy(degree: int) -> None:
    random = np.random.default_rng(degree)
    x = random.uniform(0.01, 0.3, 60)
    y = 0.2 + 3 * x - 7 * x**2 + random.normal(0, 0.01, 60)
    coefficients, explained = fit_polynomial(list(zip(x.tolist(), y.tolist(), strict=True)), degree)
    expected = np.polyfit(x, y, degree)
    assert coefficients == pytest.approx(expected.tolist(), rel=1e-6)
    missed = y - np.polyval(expected, x)
    assert explained == pytest.approx(1 - (missed @ missed) / ((y - y.mean()) @ (y - y.mean())))


def test_few_points_lower_the_degree() -> None:
    coefficients, explained = fit_polynomial([(1.0, 2.0), (3.0, 6.0), (1.0, 2.0)], 4)
    assert coefficients == pytest.approx([2.0, 0.0], abs=1e-9)
    assert explained == pytest.approx(1.0)
    assert fit_polynomial([(0.5, 3.0)], 4) == ((3.0,), 1.0)
    assert fit_polynomial([(0.0, 3.0)], 4) == ((3.0,), 1.0)


def test_ratios_have_a_geometric_mean() -> None:
    ratios, deviation = mean_ratios([[1.0, 2.0, 0.9], [1.0, 8.0, 0.9], [1.0, 4.0, 0.9]])
    assert ratios == pytest.approx((1.0, 4.0, 0.9))
    assert deviation == pytest.approx(1.0)
    assert mean_ratios([[0.5, 0.25]])[1] == 0.0
