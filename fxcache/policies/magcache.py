"""MagCache: known ratios of magnitudes say how wrong the last computed step has become.

    m_t  =  product of r over the steps since the last computed one      r: the table of ratios
    e_t  =  sum of |1 - m| over the same steps
    reuse  <=>  e_t <= threshold

r_t is how many times larger what the trunk adds is at step t than at step t - 1. It depends on the model and hardly on
the picture, so it is measured once (`fxcache.calibrate`). The first `retention_ratio` of the steps is always computed,
which needs the number of steps, as does the table: without it every step is. A table for another number of steps is
spread: the logarithm of the magnitude is interpolated and its differences are taken, where the published code repeats
or skips entries, which changes their product. Nothing is compared, so the predicate stays on the host.

Source: MagCache (arXiv 2506.09045).
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

from fxcache.options import Options
from fxcache.policies.threshold import Counters, rule
from fxcache.runtime.interface import Mode, Reason


def decide_before(options: Options, counters: Counters, has_state: bool) -> tuple[Mode, Reason]:
    """Return what to ask of the graph, and the reason if that is to compute."""
    ruled = rule(options, counters, has_state)
    if ruled is not None:
        return ruled
    total, place = counters.total_steps, counters.place
    if total is None:
        return Mode.COMPUTE, Reason.STEPS_UNKNOWN
    if place < int(options.retention_ratio * total + 0.5):
        return Mode.COMPUTE, Reason.WARMUP
    if not has_state:
        return Mode.COMPUTE, Reason.FIRST
    ratios = spread_ratios(options.magnitude_ratios, total)
    wrong = error(ratios[counters.last_computed_step + 1 : place + 1])
    # steps behind the end of the table are known nothing of
    known = place < total and wrong <= options.effective_threshold
    return (Mode.REUSE if known else Mode.COMPUTE), Reason.ERROR


def error(ratios: tuple[float, ...]) -> float:
    """Return the accumulated error of a row of reused steps.

    >>> error((0.5, 1.0))
    1.0
    """
    magnitude, total = 1.0, 0.0
    for ratio in ratios:
        magnitude *= ratio
        total += abs(1.0 - magnitude)
    return total


@lru_cache(maxsize=64)
def spread_ratios(ratios: tuple[float, ...], steps: int) -> tuple[float, ...]:
    """Return the table for another number of steps; the first entry, which follows nothing, stays.

    >>> [round(ratio, 3) for ratio in spread_ratios((1.0, 2.0, 2.0), 5)]
    [1.0, 1.414, 1.414, 1.414, 1.414]
    """
    if steps == len(ratios):
        return ratios
    magnitudes = [0.0]
    for ratio in ratios[1:]:
        magnitudes.append(magnitudes[-1] + math.log(ratio))
    places = [step * (len(magnitudes) - 1) / max(1, steps - 1) for step in range(steps)]
    spread = [_between(magnitudes, place) for place in places]
    return (ratios[0], *(math.exp(now - before) for before, now in pairwise(spread)))


def _between(values: list[float], place: float) -> float:
    low = min(int(place), len(values) - 1)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])
