"""`decide_blocks` against a count that is written out anew, for random controls and states."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fxcache.calibrators  # noqa: F401  (registers the forecasters)
from fxcache.kernels import BLOCK_CONTROL_SIZE, Ask, BlockControl, Control, decide_blocks_reference

ENTRIES = 3


@dataclass
class Unit:
    """What the host tells of a unit, and what the device has of it."""

    mode: int = Ask.DECIDE
    store: int = 1
    threshold: float = 0.1
    growth: float = 1.0
    ages: list[int] = field(default_factory=lambda: [0])
    """Slots of the stored steps, newest first."""
    sums: tuple[float, float] = (0.05, 1.0)
    sick: tuple[int, ...] = ()
    """Slots whose values are not finite."""


def told(units: list[Unit], grow: tuple[float, float] = (0.0, 0.0), check_clock: bool = False) -> Tensor:
    """The control that says this of the units."""
    control = torch.zeros(len(units), BLOCK_CONTROL_SIZE, dtype=torch.float64)
    for row, unit in zip(control, units, strict=True):
        row[Control.MODE], row[Control.STORE], row[Control.THRESHOLD] = unit.mode, unit.store, unit.threshold
        row[BlockControl.GROWTH], row[BlockControl.RELAX], row[BlockControl.CAP] = unit.growth, *grow
        row[Control.SLOT], row[Control.COUNT], row[Control.NOW] = 2, len(unit.ages), 10
        row[Control.CHECK_CLOCK] = check_clock
        for age, slot in enumerate(unit.ages):
            row[Control.TIMES + age], row[Control.SLOTS + age] = 9 - age, slot
    return control


def run_on(
    units: list[Unit],
    control: Tensor,
    first: int = 0,
    count: int | None = None,
    clock: tuple[float, float, float] = (1.0, 0.0, 1.0),
    **more: Any,
) -> tuple[Tensor, ...]:
    """Decide about some units; every unit has a reference and one stream."""
    health = torch.zeros(2 * len(units), ENTRIES)
    for number, unit in enumerate(units):
        for slot in unit.sick:
            health[2 * number + 1, slot] = math.nan
    count = len(units) - first if count is None else count
    observed = torch.tensor([unit.sums for unit in units[first : first + count]], dtype=torch.float32)
    arguments = (
        None if more.get("blind") else observed,
        more.get("grams", []),
        health,
        torch.tensor(clock),
        control,
        first,
        count,
        [number // 2 for number in range(2 * len(units))],
        list(range(0, 2 * len(units), 2)),  # the references
        more.get("gram_units", []),
        more.get("forecast", ""),
    )
    return decide_blocks_reference(*arguments)


def run(units: list[Unit], grow: tuple[float, float] = (0.0, 0.0), **more: Any) -> tuple[tuple[Tensor, ...], Tensor]:
    control = told(units, grow, check_clock="clock" in more)
    return run_on(units, control, **more), control


finite = st.floats(0, 4, width=32)
some_units = st.lists(
    st.builds(
        Unit,
        mode=st.sampled_from(list(Ask)),
        store=st.integers(0, 1),
        threshold=st.sampled_from([-math.inf, 0.05, 0.5, 2.0, math.inf]),
        growth=st.sampled_from([1.0, 2.0, math.nan]),
        ages=st.sampled_from([[], [0], [1], [1, 0], [2, 1, 0]]),
        sums=st.tuples(finite | st.sampled_from([math.nan, math.inf]), finite),
        sick=st.sampled_from([(), (0,), (1,), (2,)]),
    ),
    min_size=1,
    max_size=6,
)


def expected(units: list[Unit], relax: float, cap: float) -> list[bool]:
    """The rule, unit by unit."""
    decided, sample = [], []
    for unit in units:
        top, bottom = (float(torch.tensor(value)) for value in unit.sums)
        ratio = 0.0 if top == bottom == 0 else math.inf if bottom == 0 else top / bottom
        difference = ratio * unit.growth
        newest_is_sick = unit.mode == Ask.DECIDE and bool(unit.ages) and unit.ages[0] in unit.sick
        usable = bool(unit.ages) and not newest_is_sick
        limit, positive = unit.threshold, [value for value in sample[:5] if value > 0]
        if cap > 0 and positive:
            limit = max(limit, min(relax * sum(positive) / len(positive), cap))
        if unit.mode == Ask.DECIDE and usable and math.isfinite(difference) and math.isfinite(top):
            sample.append(difference)
        known = math.isfinite(top) and not math.isnan(difference)
        if unit.mode == Ask.DECIDE:
            decided.append(usable and known and difference < limit)
        else:
            decided.append(unit.mode == Ask.REUSE and usable)
    return decided


@settings(max_examples=300, deadline=None)
@given(some_units, st.sampled_from([(0.0, 0.0), (1.25, 0.2), (3.0, 5.0)]))
def test_every_unit_is_decided_by_the_rule(units: list[Unit], grow: tuple[float, float]) -> None:
    (reuse, slot, first, weights), control = run(units, grow=grow)
    wanted = expected(units, *grow)
    assert reuse.tolist() == wanted
    stores = [bool(unit.store) and not skip for unit, skip in zip(units, wanted, strict=True)]
    assert slot.tolist() == [2 if one else -1 for one in stores]
    assert first.tolist() == [0 if one else -1 for one in stores]
    assert weights.numel() == 0
    assert control[:, Control.REUSED].tolist() == [float(skip) for skip in wanted]


@settings(max_examples=100, deadline=None)
@given(some_units, st.sampled_from([(0.0, 0.0), (1.25, 0.2)]))
def test_one_after_the_other_is_the_same_as_together(units: list[Unit], grow: tuple[float, float]) -> None:
    (together, *_), control = run(units, grow=grow)
    one_by_one = told(units, grow)
    alone = [flag for number in range(len(units)) for flag in run_on(units, one_by_one, number, 1)[0].tolist()]
    assert alone == together.tolist()
    torch.testing.assert_close(one_by_one, control, equal_nan=True)


def test_a_restart_computes_all_units() -> None:
    (reuse, *_), control = run([Unit(), Unit()], clock=(1.0, 5.0, 2.0))
    assert not reuse.any()
    assert control[:, Control.RESTARTED].all()
    assert control[0, Control.CLOCK_NOW] == 2.0


def test_the_restart_that_the_first_call_sees_holds_for_the_others() -> None:
    units = [Unit(), Unit()]
    _, control = run(units, first=0, count=1, clock=(1.0, 5.0, 2.0))
    assert not run_on(units, control, 1, 1)[0].any()


def test_weights_are_those_of_the_units_own_times() -> None:
    line = [Unit(ages=[0]), Unit(ages=[1, 0]), Unit(ages=[2, 0], mode=Ask.COMPUTE)]
    (_, _, _, weights), _ = run(line, forecast="taylorseer 1")
    # times 9 and 8, now 10: twice the newer value less the older one
    assert weights[:, 0].tolist() == [[1, 0, 0], [-1, 2, 0], [0, 0, 0]]


def test_grams_go_to_their_units() -> None:
    grams = [torch.eye(ENTRIES, dtype=torch.float64) * scale for scale in (1, 2, 3)]
    units = [Unit(ages=[2, 1, 0]), Unit(ages=[2, 1, 0])]
    (_, _, _, weights), _ = run(units, forecast="dmd 0 1e-08", grams=grams, gram_units=[0, 1, 1])
    assert weights.shape == (2, 2, ENTRIES)
    assert not weights[0, 1].any()
    assert weights[1].abs().sum(-1).gt(0).all()


def test_nothing_is_read_for_units_that_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    original = torch.cat
    monkeypatch.setattr(torch, "cat", lambda *args, **kwargs: reads.append(1) or original(*args, **kwargs))
    run([Unit(mode=Ask.COMPUTE)] * 3)
    assert reads == []
    run([Unit(mode=Ask.COMPUTE), Unit(), Unit()])
    assert reads == [1]


def test_without_an_indicator_a_mask_decides() -> None:
    (reuse, *_), control = run([Unit(mode=Ask.REUSE), Unit(mode=Ask.REUSE, ages=[])], blind=True)
    assert reuse.tolist() == [True, False]
    assert not control[:, Control.MEASURED].any()
