"""FoCa: a predictor of second order, corrected once by the mean of two slopes.

With h = now - t_0, g = t_0 - t_1, the ratio w = h / g, and the slope s at t_0 from the last computed steps (that of
the parabola through three, of the line through two):

    P = ( (1 + w)^2 y_0  -  w^2 y_1  +  h (1 + w) s ) / (1 + 2 w)            BDF2 with variable steps
    q = ( (1 + 2 w) P  -  (1 + w)^2 y_0  +  w^2 y_1 ) / ( h (1 + w) )        its slope at now, which is s again
    y = y_0 + h / 2 ( (P - y_0) / h  +  q )                                  Heun: mean of chord and end slope

Every slope is divided by the true distance of its steps: exact on straight lines whatever the distances.

Source: FoCa (arXiv 2508.16211), feature caching as an ordinary differential equation.
"""

from __future__ import annotations

from fxcache.kernels import Forecaster, Window


def foca() -> Forecaster:
    """Return the forecaster."""
    return Forecaster(foca_weights)


def foca_weights(window: Window) -> list[float]:
    """Weights of the corrected prediction, newest first: the three newest steps count."""
    times = window.times
    count = len(times)
    if count == 1:
        return [1.0]
    forward, gap = window.now - times[0], times[0] - times[1]
    slope = [1.0 / gap, -1.0 / gap, 0.0]
    if count > 2:
        before = times[1] - times[2]
        bend = gap / (gap + before)  # slope of the parabola: s01 + (s01 - s12) g / (g + g')
        slope = [(1 + bend) / gap, -(1 + bend) / gap - bend / before, bend / before]
    ratio = forward / gap
    ahead, behind = (1 + ratio) ** 2, ratio**2
    values = [ahead, -behind, 0.0]
    predicted = [(v + forward * (1 + ratio) * s) / (1 + 2 * ratio) for v, s in zip(values, slope, strict=True)]
    newest = [1.0, 0.0, 0.0]
    corrected = [y + 0.5 * ((p - y) + forward * s) for y, p, s in zip(newest, predicted, slope, strict=True)]
    return [*corrected[:count], *[0.0] * (count - 3)]
