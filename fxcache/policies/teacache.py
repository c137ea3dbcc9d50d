"""TeaCache: the changes of what the first block reads, from step to step, are summed until a step is computed.

    d_t  =  mean|x_t - x_t-1| / mean|x_t-1|           x: what the first block reads, modulated by the time
    s_t  =  s_t-1 + max(0, p(d_t))                    p: a polynomial; s is 0 after a computed step
    reuse  <=>  s_t < threshold

The reference x_t-1 is that of the previous step, computed or not. p turns a change of the input into one of the output;
it is fitted once per model (`fxcache.calibrate`), and is p(d) = d where nobody has. Where it is below 0, which no
distance is, it counts as 0. Where first blocks run on every step, their residual takes the place of x.

Source: TeaCache (arXiv 2411.19108).
"""

from __future__ import annotations

from fxcache.options import Options
from fxcache.policies import threshold as _threshold
from fxcache.policies.threshold import Counters


def threshold(options: Options) -> float:
    """Return the number the sum must stay below: unlike a single difference it is compared above 1 too."""
    return _threshold.threshold(options) if options.has_static_mask else options.effective_threshold


def scale(options: Options, counters: Counters) -> tuple[float, tuple[float, ...]]:
    """Return the sum so far and the polynomial."""
    return counters.accumulated_difference, options.rescale_coefficients


def after(counters: Counters, reused: bool, total: float | None) -> None:
    """Move the counters past one call; what it compared was the sum with its own change."""
    before = counters.accumulated_difference
    _threshold.after(counters, reused, None)
    if reused:
        counters.accumulated_difference = before if total is None else total
