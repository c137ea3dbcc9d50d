"""When to reuse: one module per policy, looked up by the option `method`.

A policy is a few functions on options and counters; it sees step numbers and differences, never tensors or modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fxcache.options import Options
from fxcache.policies import easycache as _easycache
from fxcache.policies import interval as _interval
from fxcache.policies import magcache as _magcache
from fxcache.policies import teacache as _teacache
from fxcache.policies import threshold as _threshold
from fxcache.policies.threshold import Counters
from fxcache.runtime.interface import Mode, Reason

__all__ = ["POLICIES", "Counters", "Policy", "policy_of"]


@dataclass(frozen=True)
class Policy:
    """The host's part of a caching method."""

    decide_before: Callable[[Options, Counters, bool], tuple[Mode, Reason]]
    """(options, counters, has state) -> what to ask of the graph, and why."""
    threshold: Callable[[Options], float]
    """The number that a call in `Mode.DECIDE` compares its difference with."""
    after: Callable[[Counters, bool, float | None], None]
    """(counters, reused, difference): move the counters past a call."""
    scale: Callable[[Options, Counters], tuple[float, tuple[float, ...]]] = lambda options, counters: (0.0, ())
    """What a measured difference goes through before it is compared: a number it is added to, and the coefficients of
    a polynomial, highest power first; none: it is compared as it is."""


POLICIES: dict[str, Policy] = {
    "dbcache": Policy(_threshold.decide_before, _threshold.threshold, _threshold.after),
    "dbprune": Policy(_threshold.decide_before, _threshold.threshold, _threshold.after),
    "interval": Policy(_interval.decide_before, _threshold.threshold, _threshold.after),
    "teacache": Policy(_threshold.decide_before, _teacache.threshold, _teacache.after, _teacache.scale),
    "magcache": Policy(_magcache.decide_before, _threshold.threshold, _threshold.after),
    "easycache": Policy(_easycache.decide_before, _teacache.threshold, _teacache.after, _easycache.scale),
}


def policy_of(options: Options) -> Policy:
    """Return the policy of the option `method`."""
    return POLICIES[options.method]
