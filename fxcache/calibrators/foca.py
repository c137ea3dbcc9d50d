"""FoCa: a backward difference formula predicts, and the mean of two slopes corrects once.

With h = now - t_0, g = t_0 - t_1, the ratio w = h / g, and the slope s at t_0 from the last computed steps (that of
the parabola through three, of the line through two):

    P = ( (1 + w)^2 y_0  -  w^2 y_1  +  h (1 + w) s ) / (1 + 2 w)            BDF2 with variable steps
    q = ( (1 + 2 w) P  -  (1 + w)^2 y_0  +  w^2 y_1 ) / ( h (1 + w) )        its slope at now, which is s again
    y = y_0 + h / 2 ( (P - y_0) / h  +  q )                                  Heun: mean of chord and end slope

Every slope is divided by the true distance of its steps: exact on straight lines whatever the distances. BDF2 wants
the slope at now, which nobody knows; with that at t_0 in its place the error falls with the square of the distances,
as that of the straight line does, and is 0.4 to 0.9 of it on the usual schedules. Far ahead of steps that lie close
together the weights grow with the square of the ratio: above a limit of their gain the straight line is taken instead.

Source: FoCa (arXiv 2508.16211), feature caching as an ordinary differential equation.
"""

from __future__ import annotations

import math

from fxcache.calibrators.taylorseer import unobserved_weights, within
from fxcache.kernels import Forecaster, Window


def foca(limit: float = math.inf) -> Forecaster:
    """Return the forecaster."""
    return Forecaster(lambda window: foca_weights(window, limit))


def foca_weights(window: Window, limit: float = math.inf) -> list[float]:
    """Weights of the corrected prediction, newest first: the three newest steps count.

    Where their gain is above the limit, those of the straight line, or of the newest step alone.
    """
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
    if not within(corrected, limit):
        return unobserved_weights(window, 1, limit)
    return [*corrected[:count], *[0.0] * (count - 3)]
