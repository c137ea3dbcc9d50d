"""The rules of DBCache that need only counters: their order, and the patterns they are known by."""

from __future__ import annotations

import math

import pytest

from fxcache.options import Options
from fxcache.policies import POLICIES, Counters, policy_of
from fxcache.runtime.attribution import Attribution, Mode, Reason
from fxcache.runtime.generation import Generation
from tests.runtime.loop import Model, schedule


def decide(step: int = 9, cached: int = 0, row: int = 0, accumulated: float = 0.0, has_state: bool = True, **changes):
    return policy_of(Options()).decide_before(Options(**changes), Counters(step, cached, row, accumulated), has_state)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Reason.DIFFERENCE),
        ({"step": 7}, Reason.WARMUP),
        ({"step": 8}, Reason.DIFFERENCE),
        ({"step": 7, "warmup_interval": 2}, Reason.DIFFERENCE),
        ({"step": 6, "warmup_interval": 2}, Reason.WARMUP),
        ({"step": 0, "max_warmup_steps": 0}, Reason.DIFFERENCE),
        ({"cached": 3, "max_cached_steps": 3}, Reason.MAX_CACHED),
        ({"cached": 2, "max_cached_steps": 3}, Reason.DIFFERENCE),
        ({"max_cached_steps": 0}, Reason.MAX_CACHED),
        ({"row": 1, "max_continuous_cached_steps": 1}, Reason.MAX_CONTINUOUS),
        ({"row": 0, "max_continuous_cached_steps": 0}, Reason.MAX_CONTINUOUS),
        ({"accumulated": 0.5, "max_accumulated_residual_diff_threshold": 0.5}, Reason.MAX_ACCUMULATED),
        ({"accumulated": 0.4, "max_accumulated_residual_diff_threshold": 0.5}, Reason.DIFFERENCE),
        ({"residual_diff_threshold": 0.0}, Reason.DISABLED),
        ({"residual_diff_threshold": 0.0, "l1_hidden_states_diff_threshold": 0.1}, Reason.DIFFERENCE),
        ({"l1_hidden_states_diff_threshold": -1.0}, Reason.DISABLED),
        ({"has_state": False}, Reason.FIRST),
    ],
)
def test_rules(given, expected):
    assert decide(**given) == (Mode.DECIDE if expected is Reason.DIFFERENCE else Mode.COMPUTE, expected)


def test_first_rule_that_matches_wins():
    limits = {
        "max_cached_steps": 1,
        "max_continuous_cached_steps": 1,
        "max_accumulated_residual_diff_threshold": 0.1,
        "residual_diff_threshold": 0.0,
    }
    state = {"step": 0, "cached": 1, "row": 1, "accumulated": 1.0, "has_state": False}
    order = []
    for change in (
        {"step": 9},
        {"cached": 0},
        {"row": 0},
        {"accumulated": 0.0},
        {"residual_diff_threshold": 0.1},
        {"has_state": True},
    ):
        order.append(decide(**{**limits, **state})[1])
        (state if change.keys() <= state.keys() else limits).update(change)
    order.append(decide(**{**limits, **state})[1])
    expected = ["WARMUP", "MAX_CACHED", "MAX_CONTINUOUS", "MAX_ACCUMULATED", "DISABLED", "FIRST", "DIFFERENCE"]
    assert [reason.name for reason in order] == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"residual_diff_threshold": 0.3}, 0.3),
        ({"residual_diff_threshold": 1.0}, math.inf),
        ({"residual_diff_threshold": 7}, math.inf),
        ({"residual_diff_threshold": 7, "l1_hidden_states_diff_threshold": 0.2}, 0.2),
    ],
)
def test_threshold(options, expected):
    assert POLICIES["dbcache"].threshold(Options(**options)) == expected


def test_counters():
    counters, after = Counters(), policy_of(Options()).after
    for reused, difference in ((False, None), (True, 0.25), (True, 0.5), (True, None)):
        after(counters, reused, difference)
    assert counters == Counters(4, 3, 3, 0.75, computed_steps=1, last_computed_step=0)
    after(counters, False, 0.9)
    assert counters == Counters(5, 3, 0, 0.0, computed_steps=2, last_computed_step=4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_continuous_cached_steps": 0}, "CCCCCCCC"),
        ({"max_continuous_cached_steps": 1}, "CC.C.C.C"),
        ({"max_continuous_cached_steps": 2}, "CC..C..C"),
        ({"max_continuous_cached_steps": 3}, "CC...C.."),
        ({"max_cached_steps": 2}, "CC..CCCC"),
        ({"max_cached_steps": 0}, "CCCCCCCC"),
        ({"max_warmup_steps": 6, "warmup_interval": 2}, "C.C.C..."),
        ({"max_warmup_steps": 0}, "C......."),
        ({"max_accumulated_residual_diff_threshold": 0.25}, "CC...C.."),
        ({"residual_diff_threshold": 0.1}, "CCCCCCCC"),
        ({"residual_diff_threshold": 1.0}, "CC......"),
    ],
)
def test_patterns(options, expected):
    model = Model(Attribution(), **{"max_warmup_steps": 2, **options})
    with Generation():
        assert model.run(schedule(8), difference=0.1) == expected


def test_not_a_number_is_computed_and_forgotten():
    model = Model(Attribution(), residual_diff_threshold=1.0)
    with Generation():
        codes = [model.run([time], difference=d) for time, d in zip(schedule(4), (0, 0.1, math.nan, 0.1), strict=True)]
    assert codes == ["C", ".", "C", "."]
    assert model.records()[0].reasons == {Reason.WARMUP: 1, Reason.REUSED: 2, Reason.NOT_FINITE: 1}
