"""Decisions of one step about several units of a trunk: `decide`, for every unit that can be skipped by itself.

Row u of ``control`` [units, BLOCK_CONTROL_SIZE] (float64, on the CPU, shared with the runtime) has the fields of
`decide.Control` for unit u, and behind them those of `BlockControl`. The call decides about the units ``first`` to
``first + count - 1``. All that it reads of the device travels in one transfer; units in mode COMPUTE read nothing.

    d_u     = growth_u * observed[u, 0] / observed[u, 1]
    T_u     = max(threshold, min(relax * mean of the first five d > 0 of this step, cap))        (cap 0: threshold)
    reuse_u = mode is REUSE   or   mode is DECIDE  and  d_u finite  and  d_u < T_u  and  time not restarted
              and the newest stored step of the unit is healthy

``observed`` is float32 [count, 2], the two sums of `residual_diff` per unit; None: no indicator. ``growth`` is 1 when
they belong to this step; when they were taken at the step before, it carries them on. ``grams`` are float64 [n, n],
one per predicted stream that needs them, and ``gram_units`` their units; ``rows`` gives the unit, in rising order, of
every row of ``health`` [rows, n], and ``singles`` the rows of histories of one entry. ``clock``, ``forecast`` and
``groups`` are as in `decide`; the clock is looked at where the control of unit 0 says so, in the call that decides
about it.

Returns on the CPU reuse (bool [count]), slot and first (int64 [count]), and on the device of ``health`` the weights,
float32 [count, k, n] with k the most grams of one unit, at least 1; empty without a forecaster. Source of the rule:
DBPrune (cache-dit), which asks the device once per block and falls back to the threshold beyond the cap.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Sequence
from enum import IntEnum

import torch
from torch import Tensor

from fxcache.kernels._forecast import forecaster
from fxcache.kernels._host import all_finite, healthy_steps, in_one_transfer, on_device, relative
from fxcache.kernels._library import register_operator
from fxcache.kernels._ranks import summed, unanimous
from fxcache.kernels.decide import CONTROL_SIZE, SEEN, Ask, Control, clock_restarted, stored_slots, weights_by_slot

_SAMPLE = 5
"""Differences of a step that its threshold grows with."""


class BlockControl(IntEnum):
    """Slots of a row of ``control`` behind those of `Control`."""

    GROWTH = CONTROL_SIZE
    RELAX = CONTROL_SIZE + 1
    CAP = CONTROL_SIZE + 2
    """Of the threshold; 0: it does not grow."""


BLOCK_CONTROL_SIZE = CONTROL_SIZE + len(BlockControl)


def decide_blocks_reference(
    observed: Tensor | None,
    grams: Sequence[Tensor],
    health: Tensor,
    clock: Tensor,
    control: Tensor,
    first: int,
    count: int,
    rows: Sequence[int],
    singles: Sequence[int],
    gram_units: Sequence[int],
    forecast: str = "",
    groups: Sequence[str] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (reuse, slot, first, weights) of the units and record per unit what was seen in ``control``."""
    # a step may ask once per unit: only what belongs to the units of this call is looked at
    told = control[first : first + count].tolist()
    leading = told[0] if first == 0 else control[0].tolist()
    low, high = bisect_left(rows, first), bisect_left(rows, first + count)
    units = range(first, first + count)
    mine = [place for place, unit in enumerate(gram_units) if unit in units]
    grams = [grams[place] for place in mine]
    if groups:
        observed, grams = summed(observed, grams, groups)
    check_clock = first == 0 and bool(leading[Control.CHECK_CLOCK])
    read = _Read(observed, grams, health[low:high], clock if check_clock else None, told)
    weights = torch.zeros(_weights_shape(count, gram_units, health, forecast), dtype=torch.float32)
    restarted, times = bool(leading[Control.RESTARTED]), [math.nan] * 3
    if read.clock:
        times = read.clock
        restarted = clock_restarted(times[0], times[1], times[2], bool(leading[Control.REPEAT_ALLOWED]))
    grows = any(row[BlockControl.CAP] > 0 for row in told)
    before = control[:first].tolist() if grows else []
    sample = [row[Control.DIFFERENCE] for row in before if row[Control.MEASURED]]
    wanted, seen = [], []
    for place, (unit, row) in enumerate(zip(units, told, strict=True)):
        begin, end = bisect_left(rows, unit), bisect_left(rows, unit + 1)
        single = [number - begin for number in singles if begin <= number < end]
        used = read.healthy(row, slice(begin - low, end - low), single)
        if forecast and used and row[Control.MODE] != Ask.COMPUTE:
            products = [read.grams[i] for i, number in enumerate(mine) if gram_units[number] == unit]
            shape = (max(1, len(products)), health.shape[-1])
            made = weights_by_slot(forecaster(forecast), None, products, shape, row, used)
            weights[place, : len(made)] = torch.tensor(made, dtype=torch.float32)
        difference, finite = read.difference(place, row)
        finite = finite and used > 0
        measured = finite and math.isfinite(difference)
        limit = _threshold(row, sample)
        if measured:
            sample.append(difference)
        below = row[Control.MODE] == Ask.REUSE or (0.0 if observed is None else difference) < limit
        wanted.append(row[Control.MODE] != Ask.COMPUTE and finite and below and not restarted)
        seen.append([measured, difference, finite, restarted])
    reuse = unanimous(wanted, groups, health.device) if groups else wanted
    outcomes = [[skip, *what, asked != skip, *times] for skip, asked, what in zip(reuse, wanted, seen, strict=True)]
    control[first : first + count, SEEN] = torch.tensor(outcomes, dtype=torch.float64)
    stored = [bool(row[Control.STORE]) and not skip for row, skip in zip(told, reuse, strict=True)]
    stores = torch.tensor([int(row[Control.SLOT]) if here else -1 for row, here in zip(told, stored, strict=True)])
    return torch.tensor(reuse), stores, stores.clamp(max=0), on_device(weights, health.device)


class _Read:
    """What the device knows, on the host after one transfer; nothing is transferred if nobody asks."""

    def __init__(
        self,
        observed: Tensor | None,
        grams: Sequence[Tensor],
        health: Tensor,
        clock: Tensor | None,
        told: list[list[float]],
    ) -> None:
        modes = {row[Control.MODE] for row in told}
        decides, asks = Ask.DECIDE in modes, modes != {Ask.COMPUTE}
        check_clock = decides and clock is not None
        parts = [*(grams if asks else []), *([health] if decides else [])]
        parts += [observed] if decides and observed is not None else []
        parts += [clock] if check_clock and clock is not None else []
        pieces = in_one_transfer(parts)
        self.clock: list[float] = pieces.pop() if check_clock else []
        self.observed = pieces.pop() if decides and observed is not None else None
        self.health = all_finite(pieces.pop()) if decides else None
        self.grams = pieces

    def healthy(self, row: list[float], rows: slice, singles: Collection[int]) -> int:
        """Number of newest steps of a unit that can be read: its rows of the health, those of one entry among them."""
        count = int(row[Control.COUNT])
        if self.health is None or row[Control.MODE] != Ask.DECIDE:
            return count
        return healthy_steps(self.health[rows], stored_slots(row, count), singles)

    def difference(self, place: int, row: list[float]) -> tuple[float, bool]:
        """Relative difference of a unit, and whether what it is made from is finite."""
        if self.observed is None or row[Control.MODE] != Ask.DECIDE:
            return math.nan, True
        numerator, denominator = self.observed[place]
        difference = relative(numerator, denominator) * row[BlockControl.GROWTH]
        return difference, math.isfinite(numerator) and math.isfinite(denominator) and not math.isnan(difference)


def _threshold(row: list[float], sample: Sequence[float]) -> float:
    base, cap = row[Control.THRESHOLD], row[BlockControl.CAP]
    positive = [difference for difference in sample[:_SAMPLE] if difference > 0]
    if cap <= 0 or not positive:
        return base
    return max(base, min(row[BlockControl.RELAX] * sum(positive) / len(positive), cap))


def _weights_shape(count: int, gram_units: Sequence[int], health: Tensor, forecast: str) -> tuple[int, ...]:
    most = max((gram_units.count(unit) for unit in gram_units), default=1)
    return (count, most, health.shape[-1]) if forecast else (0,)


def _fake(
    observed: Tensor | None,
    grams: Sequence[Tensor],
    health: Tensor,
    clock: Tensor,
    control: Tensor,
    first: int,
    count: int,
    rows: Sequence[int],
    singles: Sequence[int],
    gram_units: Sequence[int],
    forecast: str = "",
    groups: Sequence[str] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def host(dtype: torch.dtype) -> Tensor:
        return torch.empty(count, dtype=dtype, device="cpu")

    weights = health.new_empty(_weights_shape(count, gram_units, health, forecast), dtype=torch.float32)
    return host(torch.bool), host(torch.int64), host(torch.int64), weights


register_operator(
    "decide_blocks(Tensor? observed, Tensor[] grams, Tensor health, Tensor clock, Tensor(a!) control, int first,"
    " int count, int[] rows, int[] singles, int[] gram_units, str forecast='',"
    " str[]? groups=None) -> (Tensor, Tensor, Tensor, Tensor)",
    decide_blocks_reference,
    _fake,
)
