"""When to reuse: one module per policy, looked up by the option `method`.

A policy is three functions on options and counters; it sees step numbers and differences, never tensors or modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fxcache.options import Options
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


POLICIES: dict[str, Policy] = {
    "dbcache": Policy(_threshold.decide_before, _threshold.threshold, _threshold.after),
    "dbprune": Policy(_threshold.decide_before, _threshold.threshold, _threshold.after),
}


def policy_of(options: Options) -> Policy:
    """Return the policy of the option `method`."""
    return POLICIES[options.method]
