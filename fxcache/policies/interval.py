"""Interval: every n-th step is computed, whatever it looks like.

    compute  <=>  warmup, a last step, or n - 1 steps have been reused since the last computed one

Nothing is compared, so the predicate stays on the host and the graph has no indicator. With a calibrator this is the
schedule that TaylorSeer was published with.

Source: FORA (arXiv 2407.01425), which keeps the outputs of attention and MLP of every layer; here what the trunk adds
is kept, once.
"""

from __future__ import annotations

from fxcache.options import Options
from fxcache.policies.threshold import Counters, rule
from fxcache.runtime.interface import Mode, Reason


def decide_before(options: Options, counters: Counters, has_state: bool) -> tuple[Mode, Reason]:
    """Return what to ask of the graph, and the reason if that is to compute."""
    ruled = rule(options, counters, has_state)
    if ruled is not None:
        return ruled
    if not has_state:
        return Mode.COMPUTE, Reason.FIRST
    due = counters.continuous_cached_steps >= options.cache_interval - 1
    return (Mode.COMPUTE if due else Mode.REUSE), Reason.INTERVAL
