"""Decision of a step: read the indicator, forecast, compare with the threshold, return the predicate of the branch.

The host writes what it knows into ``control`` before the call (mode, threshold, what it knows of the time, the steps
that are stored), the operator adds the tensor part and writes back what it saw. In mode COMPUTE nothing on the device
is read, in mode REUSE only what the forecast is made from, if anything: a step that the schedule decides alone costs no
synchronisation. In mode DECIDE all device values travel in one transfer: one synchronisation.

    d      = observation[0] / observation[1]                              indicator "residual": the two sums
    d      = | r - sum_i w_i h_i | / | r |                                indicator "forecast": from the products
    d      = observation[0] / observation[4]  *  observation[2] / observation[3]     five sums: an estimate, see below
    d     <- offset + max(0, polynomial(d))                               if the host gave coefficients
    reuse  = mode is REUSE   or   mode is DECIDE  and  d finite  and  d < threshold  and  time not restarted
             and the newest stored step is healthy
    slot   = where the step is to be stored, -1 if it is not
    with sizes that are not those in control: no reuse, and slot -1

``observation`` is float32 [2] or float64 [n + 1, n + 1], see `residual_diff` and `residual_products`, or float32 [5]:
`residual_diff` of the input of the trunk, and behind it what `note_change` has measured of its output; None: no
indicator. ``grams`` are float64 [n, n], one per predicted stream, if the forecast needs them. ``health`` is float32
[rows, n], 0 for a stored value that is finite; steps behind the newest unhealthy one are not used. ``clock`` is float32
[3]: direction of time (+1, -1, or 0 when unknown), time of the previous call, time now; it is looked at only when
``control[CHECK_CLOCK]`` is set. Time that runs against its direction, is not a number, or stands still where that is
not allowed, means that another image has begun. ``control`` is float64 [CONTROL_SIZE] on the CPU, shared with the
runtime. ``forecast`` names a forecaster and its numbers, "" none; ``singles`` are the rows of ``health`` that belong to
histories of one entry. ``sizes`` are those of the stored values that only the running graph knows; the host says what
the state was made for, and reads what it would have to be made for. ``groups`` are the process groups of a model that
is spread over ranks: observation and grams are summed over them, and nothing is reused that another rank computes; then
every call waits for the others.

Returns on the CPU: reuse (bool), slot and first (int64: the slot of a history of n entries and of one entry, or -1);
and on the device of ``health`` the weights by slot, float32 [max(1, streams), n], empty without a forecaster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from fxcache.kernels._forecast import MAX_ENTRIES, Forecaster, Matrix, Window, forecast_error, forecaster
from fxcache.kernels._host import all_finite, healthy_steps, in_one_transfer, on_device, relative, taken
from fxcache.kernels._library import register_operator
from fxcache.kernels._ranks import summed, unanimous

MAX_COEFFICIENTS = 8
"""Most coefficients of the polynomial that a difference goes through."""
MAX_SIZES = 8
"""Most sizes that only the running graph knows."""


class Control(IntEnum):
    """Slots of the ``control`` vector: what the host says, what the operator saw, then times and slots by age."""

    MODE = 0
    STORE = 1
    THRESHOLD = 2
    CHECK_CLOCK = 3
    REPEAT_ALLOWED = 4
    SLOT = 5
    """Where this step is to be stored."""
    COUNT = 6
    """Steps that are stored."""
    NOW = 7
    """Time of this step, for the forecast."""
    REUSED = 8
    MEASURED = 9
    DIFFERENCE = 10
    FINITE = 11
    RESTARTED = 12
    OUTVOTED = 13
    """This rank would have reused the step, and another one computes it."""
    CLOCK_DIRECTION = 14
    CLOCK_PREVIOUS = 15
    CLOCK_NOW = 16
    TIMES = 17
    """First of `MAX_ENTRIES` times of stored steps, newest first."""
    SLOTS = TIMES + MAX_ENTRIES
    """First of as many slots, in the same order."""
    OFFSET = SLOTS + MAX_ENTRIES
    """What the polynomial of the difference is added to."""
    TERMS = OFFSET + 1
    """Coefficients of that polynomial; 0: the difference is compared as it is."""
    COEFFICIENTS = TERMS + 1
    """First of `MAX_COEFFICIENTS`, highest power first."""
    SIZES = COEFFICIENTS + MAX_COEFFICIENTS
    """First of `MAX_SIZES`: what the state was made for, then what was met."""


class Ask(IntEnum):
    """Values of ``control[MODE]``."""

    COMPUTE = 0
    DECIDE = 1
    REUSE = 2


CONTROL_SIZE = Control.SIZES + MAX_SIZES
SEEN = slice(Control.REUSED, Control.TIMES)


def clock_restarted(direction: float, previous: float, now: float, repeat_allowed: bool) -> bool:
    """Say whether ``now`` cannot follow ``previous`` in one generation whose time runs in ``direction``."""
    if math.isnan(previous) or math.isnan(now):
        return True
    if now == previous:
        return not repeat_allowed
    return (now - previous) * direction < 0.0


def decide_reference(
    observation: Tensor | None,
    grams: Sequence[Tensor],
    health: Tensor,
    clock: Tensor,
    control: Tensor,
    forecast: str = "",
    singles: Sequence[int] = (),
    sizes: Sequence[int] = (),
    groups: Sequence[str] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (reuse, slot, first, weights) and record difference, finiteness and restart in ``control``."""
    told = control.tolist()
    met = slice(Control.SIZES, Control.SIZES + len(sizes))
    fits = told[met] == [float(size) for size in sizes]
    if not fits:
        control[met] = torch.tensor(list(sizes), dtype=torch.float64)
    if groups:
        observation, grams = summed(observation, grams, groups)
    chosen = forecaster(forecast) if forecast else None
    reuse = measured = restarted = False
    finite, difference = True, math.nan
    seen = [math.nan] * 3
    shape = _weights_shape(grams, health, forecast)
    weights: list[list[float]] = []
    mode = told[Control.MODE]
    if mode != Ask.COMPUTE:
        check_clock = mode == Ask.DECIDE and bool(told[Control.CHECK_CLOCK])
        observed, products, flags, clocks = _read(observation, grams, health, clock, told, chosen, check_clock)
        count = int(told[Control.COUNT])
        used = count if flags is None else healthy_steps(all_finite(flags), stored_slots(told, count), singles)
        finite = used > 0
        if chosen is not None and used:
            weights = weights_by_slot(chosen, _seen(observed, told, used), products, shape, told, used)
        if observed is not None and mode == Ask.DECIDE:
            difference, known = _difference(observed, weights, told, used)
            finite = finite and known
            difference = _summed(difference, told)
        measured = finite and math.isfinite(difference)
        if check_clock:
            seen = clocks
            direction, previous, now = seen
            restarted = clock_restarted(direction, previous, now, bool(told[Control.REPEAT_ALLOWED]))
        # without an indicator a threshold still says whether any difference is allowed
        compared = 0.0 if observation is None else difference
        below = mode == Ask.REUSE or compared < told[Control.THRESHOLD]
        reuse = finite and not restarted and below and fits
    wanted = reuse
    if groups:
        (reuse,) = unanimous([wanted], groups, health.device)
    stored = bool(told[Control.STORE]) and not reuse and fits
    outvoted = wanted and not reuse
    control[SEEN] = torch.tensor([reuse, measured, difference, finite, restarted, outvoted, *seen], dtype=torch.float64)
    slot = int(told[Control.SLOT]) if stored else -1
    return (
        torch.tensor(reuse),
        torch.tensor(slot),
        torch.tensor(0 if stored else -1),
        on_device(torch.tensor(weights, dtype=torch.float32), health.device)
        if reuse and weights
        else torch.zeros(shape, dtype=torch.float32, device=health.device),
    )


def _read(
    observation: Tensor | None,
    grams: Sequence[Tensor],
    health: Tensor,
    clock: Tensor,
    told: list[float],
    chosen: Forecaster | None,
    check_clock: bool,
) -> tuple[list[Any] | None, Sequence[Matrix], Matrix | None, list[float]]:
    """Bring what is needed to the host in one transfer: observation, grams, health and clock.

    With mode REUSE and a forecast that needs no numbers nothing is read.
    """
    decides = told[Control.MODE] == Ask.DECIDE
    observes = observation is not None and (decides or (chosen is not None and chosen.needs_products))
    parts = [observation] if observes and observation is not None else []
    parts += [*grams, *([health] if decides else []), *([clock] if check_clock else [])]
    pieces = in_one_transfer(parts)
    seen = pieces.pop() if check_clock else []
    flags = pieces.pop() if decides else None
    observed = pieces.pop(0) if observes else None
    return observed, pieces, flags, seen


def stored_slots(told: Sequence[float], count: int) -> list[int]:
    """Return the slots of the newest ``count`` steps that the host says are stored."""
    return [int(slot) for slot in told[Control.SLOTS : Control.SLOTS + count]]


def weights_by_slot(
    chosen: Forecaster,
    seen: Matrix | None,
    grams: Sequence[Matrix],
    shape: Sequence[int],
    told: Sequence[float],
    used: int,
) -> list[list[float]]:
    """Return the weights [rows, n] of a forecast from the ``used`` newest steps; a row has a gram, or none has."""
    slots = stored_slots(told, used)
    times = tuple(told[Control.TIMES : Control.TIMES + used])
    rows = []
    for number in range(shape[0]):
        gram = taken(grams[number], slots) if grams else None
        row = [0.0] * shape[1]
        for slot, weight in zip(slots, chosen.weights(Window(times, told[Control.NOW], seen, gram)), strict=True):
            row[slot] = weight
        rows.append(row)
    return rows


def _is_matrix(observed: list[Any]) -> bool:
    return isinstance(observed[0], list)


def _seen(observed: list[Any] | None, told: Sequence[float], used: int) -> Matrix | None:
    """The products of the present observation and of the stored ones, newest first; None where sums were observed."""
    if observed is None or not _is_matrix(observed):
        return None
    return taken(observed, [0, *(1 + slot for slot in stored_slots(told, used))])


def _difference(observed: list[Any], weights: list[list[float]], told: list[float], used: int) -> tuple[float, bool]:
    """Return the difference, and whether what it is made from is finite."""
    products = _seen(observed, told, used)
    if products is None:
        numerator, denominator, *measured = observed
        if measured:
            out_change, in_change, denominator = measured
            if in_change == 0.0 != numerator:  # what has not changed does not tell how much changes are magnified
                return math.inf, math.isfinite(numerator)
            numerator = numerator * out_change / in_change if numerator else numerator
        return relative(numerator, denominator), math.isfinite(numerator) and math.isfinite(denominator)
    if not used:
        return math.nan, False
    row = [weights[0][slot] for slot in stored_slots(told, used)] if weights else [1.0, *[0.0] * (used - 1)]
    difference = forecast_error(products, row)
    return difference, not math.isnan(difference) and math.isfinite(observed[0][0])


def _summed(difference: float, told: list[float]) -> float:
    """Add what the polynomial makes of a difference to what the host has summed."""
    terms = int(told[Control.TERMS])
    if not terms or not math.isfinite(difference):
        return difference
    value = 0.0
    for coefficient in told[Control.COEFFICIENTS : Control.COEFFICIENTS + terms]:
        value = value * difference + coefficient
    return told[Control.OFFSET] + max(0.0, value)


def _weights_shape(grams: Sequence[Tensor], health: Tensor, forecast: str) -> tuple[int, ...]:
    return (max(1, len(grams)), health.shape[-1]) if forecast else (0,)


def _fake(
    observation: Tensor | None,
    grams: Sequence[Tensor],
    health: Tensor,
    clock: Tensor,
    control: Tensor,
    forecast: str = "",
    singles: Sequence[int] = (),
    sizes: Sequence[int] = (),
    groups: Sequence[str] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def scalar(dtype: torch.dtype) -> Tensor:
        return torch.empty((), dtype=dtype, device="cpu")

    weights = health.new_empty(_weights_shape(grams, health, forecast), dtype=torch.float32)
    return scalar(torch.bool), scalar(torch.int64), scalar(torch.int64), weights


register_operator(
    "decide(Tensor? observation, Tensor[] grams, Tensor health, Tensor clock, Tensor(a!) control, str forecast='',"
    " int[] singles=[], SymInt[] sizes=[], str[]? groups=None) -> (Tensor, Tensor, Tensor, Tensor)",
    decide_reference,
    _fake,
)
