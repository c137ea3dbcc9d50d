"""The host's part of DBCache's rules: what counters alone decide before the call, and how a call moves the counters.

The rest, comparing the difference with the threshold, happens in the graph. The rules and their order are cache-dit's,
but for the accumulated difference, which restarts after every computed step, and steps behind the end of a mask, which
are computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fxcache.options import Options
from fxcache.runtime.interface import Mode, Reason
from fxcache.steps import preset_mask


@dataclass
class Counters:
    """What one context has done in its present generation."""

    step: int = 0
    """Index of the next call."""
    cached_steps: int = 0
    """Reused calls so far."""
    continuous_cached_steps: int = 0
    """Reused calls since the last computed one."""
    accumulated_difference: float = 0.0
    """Sum of the differences of those."""
    computed_steps: int = 0
    """Computed calls so far."""
    last_computed_step: int = -1
    """Place in the generation of the last of them."""
    total_steps: int | None = None
    """Calls of the whole generation, where somebody has said it."""
    begun: int = 0
    """Index from which the warmup counts."""
    step_index: int | None = None
    """Index of the next call among those, where somebody has said it: another model may have made the first ones."""

    @property
    def place(self) -> int:
        """Index of the next call in the generation, as well as it is known."""
        return self.step if self.step_index is None else self.step_index


def decide_before(options: Options, counters: Counters, has_state: bool) -> tuple[Mode, Reason]:
    """Return what to ask of the graph, and the reason if that is to compute; the first rule that matches wins.

    With `Mode.DECIDE` the reason is the one that holds if the graph then computes.
    """
    ruled = rule(options, counters, has_state)
    if ruled is not None:
        return ruled
    return (Mode.DECIDE, Reason.DIFFERENCE) if has_state else (Mode.COMPUTE, Reason.FIRST)


def rule(options: Options, counters: Counters, has_state: bool) -> tuple[Mode, Reason] | None:
    """Return what the rules that all methods share say, or None where they leave it to the method."""
    limit, total = options.max_accumulated_residual_diff_threshold, counters.total_steps
    mask, step = options.steps_computation_mask, counters.step
    if isinstance(mask, str):
        if total is None:
            return Mode.COMPUTE, Reason.STEPS_UNKNOWN
        mask, step = preset_mask(mask, total), counters.place
    if mask is not None and (step >= len(mask) or mask[step]):
        return Mode.COMPUTE, Reason.MASK
    if options.has_static_mask:
        return (Mode.REUSE, Reason.MASK) if has_state else (Mode.COMPUTE, Reason.FIRST)
    if total is not None and options.last_steps and counters.place >= total - options.last_steps:
        return Mode.COMPUTE, Reason.LAST
    warmup = options.max_warmup_steps
    if mask is not None:  # it begins with a warmup of its own
        warmup = min(warmup, next((place for place, digit in enumerate(mask) if not digit), len(mask)))
    if counters.step - counters.begun in range(0, warmup, options.warmup_interval):
        return Mode.COMPUTE, Reason.WARMUP
    if 0 <= options.max_cached_steps <= counters.cached_steps:
        return Mode.COMPUTE, Reason.MAX_CACHED
    if 0 <= options.max_continuous_cached_steps <= counters.continuous_cached_steps:
        return Mode.COMPUTE, Reason.MAX_CONTINUOUS
    if limit is not None and counters.accumulated_difference >= limit:
        return Mode.COMPUTE, Reason.MAX_ACCUMULATED
    if options.effective_threshold <= 0:
        return Mode.COMPUTE, Reason.DISABLED
    return None


def threshold(options: Options) -> float:
    """Return the number the difference must stay below: from 1 on, or where the host decides, every finite one does."""
    value = math.inf if options.has_schedule else options.effective_threshold
    return math.inf if value >= 1 else value


def after(counters: Counters, reused: bool, difference: float | None) -> None:
    """Move the counters past one call of the context."""
    if not reused:
        counters.computed_steps += 1
        counters.last_computed_step = counters.place
    counters.step += 1
    if reused:
        counters.cached_steps += 1
        counters.continuous_cached_steps += 1
        counters.accumulated_difference += difference or 0.0
    else:
        counters.continuous_cached_steps = 0
        counters.accumulated_difference = 0.0
