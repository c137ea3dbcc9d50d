"""EasyCache: how much the trunk magnifies changes is measured at computed steps; estimated changes are summed.

    k    =  |v_s - v_r| / |x_s - x_r|                 x, v: the stream as it enters and leaves the trunk
    s_t  =  s_t-1 + k |x_t - x_t-1| / |v_s|           s, r: the last two computed steps; sums of absolute values
    reuse  <=>  s_t < threshold                       the sum is 0 after a computed step

Nothing is calibrated. k needs two computed steps, so the first two are. The reference x_t-1 is that of the previous
step, computed or not.

Source: EasyCache (arXiv 2507.02860).
"""

from __future__ import annotations

from fxcache.options import Options
from fxcache.policies import threshold as _threshold
from fxcache.policies.threshold import Counters
from fxcache.runtime.interface import Mode, Reason

_IDENTITY = (1.0, 0.0)
_MEASURED = 2


def decide_before(options: Options, counters: Counters, has_state: bool) -> tuple[Mode, Reason]:
    """Return what to ask of the graph, and the reason if that is to compute."""
    mode, reason = _threshold.decide_before(options, counters, has_state)
    if mode is Mode.DECIDE and counters.computed_steps < _MEASURED:
        return Mode.COMPUTE, Reason.FIRST
    return mode, reason


def scale(options: Options, counters: Counters) -> tuple[float, tuple[float, ...]]:
    """Return the sum so far and the polynomial that changes nothing."""
    return counters.accumulated_difference, _IDENTITY
