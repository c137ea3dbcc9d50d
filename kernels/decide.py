"""Decision of a step: read the indicator, compare it with the threshold, return the predicate of the branch.

The host writes what it knows into ``control`` before the call (mode, threshold, what it knows of the time), the
operator adds the tensor part and writes back what it saw. In mode COMPUTE nothing on the device is read, so a step
that the schedule decides alone costs no synchronisation; in mode DECIDE all device values travel in one transfer:
one synchronisation.

    d      = sums[0] / sums[1]
    reuse  = mode is DECIDE  and  d finite  and  d < threshold  and  health finite  and  time not restarted
    store  = not reuse  and  the context may be written

``clock`` is float32 [3]: direction of time (+1, -1, or 0 when unknown), time of the previous call, time now; it is
looked at only when ``control[CHECK_CLOCK]`` is set. Time that runs against its direction, is not a number, or stands
still where that is not allowed, means that another image has begun. ``control`` is float64 [CONTROL_SIZE] on the
CPU, shared with the runtime. Returns two bool scalars on the CPU: reuse, store.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

from fxcache.kernels._library import register_operator


class Control(IntEnum):
    """Slots of the ``control`` vector: first what the host says, then what the operator saw."""

    DECIDE = 0
    STORE = 1
    THRESHOLD = 2
    CHECK_CLOCK = 3
    REPEAT_ALLOWED = 4
    REUSED = 5
    MEASURED = 6
    DIFFERENCE = 7
    FINITE = 8
    RESTARTED = 9
    CLOCK_DIRECTION = 10
    CLOCK_PREVIOUS = 11
    CLOCK_NOW = 12


CONTROL_SIZE = len(Control)


def clock_restarted(direction: float, previous: float, now: float, repeat_allowed: bool) -> bool:
    """Say whether ``now`` cannot follow ``previous`` in one generation whose time runs in ``direction``."""
    if math.isnan(previous) or math.isnan(now):
        return True
    if now == previous:
        return not repeat_allowed
    return (now - previous) * direction < 0.0


def decide_reference(sums: Tensor, health: Tensor, clock: Tensor, control: Tensor) -> tuple[Tensor, Tensor]:
    """Return (reuse, store) and record difference, finiteness and restart in ``control``."""
    told = control.tolist()
    reuse = measured = restarted = False
    finite, difference = True, math.nan
    seen = [math.nan] * 3
    if told[Control.DECIDE]:
        check_clock = bool(told[Control.CHECK_CLOCK])
        parts = [sums, health, clock] if check_clock else [sums, health]
        values = torch.cat(parts).tolist()
        numerator, denominator = values[:2]
        flags = values[2 : 2 + health.numel()]
        # 0 / 0 is a step identical to a reference that is all zero: no difference, not "unknown".
        difference = 0.0 if numerator == 0.0 == denominator else numerator / denominator if denominator else math.inf
        finite = math.isfinite(numerator) and math.isfinite(denominator) and all(map(math.isfinite, flags))
        measured = finite and math.isfinite(difference)
        if check_clock:
            seen = values[-3:]
            direction, previous, now = seen
            restarted = clock_restarted(direction, previous, now, bool(told[Control.REPEAT_ALLOWED]))
        reuse = finite and not restarted and difference < told[Control.THRESHOLD]
    store = bool(told[Control.STORE]) and not reuse
    control[Control.REUSED :] = torch.tensor(
        [reuse, measured, difference, finite, restarted, *seen], dtype=torch.float64
    )
    return torch.tensor(reuse), torch.tensor(store)


def _fake(sums: Tensor, health: Tensor, clock: Tensor, control: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty((), dtype=torch.bool, device="cpu"), torch.empty((), dtype=torch.bool, device="cpu")


register_operator(
    "decide(Tensor sums, Tensor health, Tensor clock, Tensor(a!) control) -> (Tensor, Tensor)", decide_reference, _fake
)
