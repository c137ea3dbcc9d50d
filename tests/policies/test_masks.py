"""A mask of steps: what it decides alone, and what it leaves to the other rules."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fxcache.options import Options
from fxcache.policies import Counters, policy_of
from fxcache.runtime.attribution import Attribution, Mode, Reason
from fxcache.runtime.generation import Generation
from tests.runtime.loop import Model, schedule

FIRST_BLOCKS = (0, 1)
"""The host's rules are the same without first blocks, whose indicator is another."""


def decide(step: int, mask: object, policy: str, has_state: bool = True, **changes: Any) -> tuple[Mode, Reason]:
    options = Options(steps_computation_mask=mask, steps_computation_policy=policy, **changes)  # type: ignore[arg-type]
    return policy_of(options).decide_before(options, Counters(step=step, cached_steps=step), has_state)


@pytest.mark.parametrize("first", FIRST_BLOCKS)
@pytest.mark.parametrize("mask", ["1101", [1, 1, 0, 1]])
@pytest.mark.parametrize("policy", ["dynamic", "static"])
def test_ones_and_the_steps_behind_the_end_are_computed(mask: object, policy: str, first: int) -> None:
    for step in (0, 1, 3, 4, 50):
        for has_state in (True, False):
            found = decide(step, mask, policy, has_state, max_warmup_steps=0, Fn_compute_blocks=first)
            assert found == (Mode.COMPUTE, Reason.MASK)


@pytest.mark.parametrize("first", FIRST_BLOCKS)
@pytest.mark.parametrize("mask", ["1101", [1, 1, 0, 1]])
def test_a_static_zero_is_reused_whatever_the_other_rules_say(mask: object, first: int) -> None:
    others = {
        "max_warmup_steps": 9,
        "max_cached_steps": 0,
        "max_continuous_cached_steps": 0,
        "max_accumulated_residual_diff_threshold": 1e-9,
        "residual_diff_threshold": 0.0,
        "Fn_compute_blocks": first,
    }
    assert decide(2, mask, "static", **others) == (Mode.REUSE, Reason.MASK)
    assert decide(2, mask, "static", has_state=False, **others) == (Mode.COMPUTE, Reason.FIRST)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (Mode.DECIDE, Reason.DIFFERENCE)),
        ({"Fn_compute_blocks": 0}, (Mode.DECIDE, Reason.DIFFERENCE)),
        ({"max_warmup_steps": 3}, (Mode.DECIDE, Reason.DIFFERENCE)),  # the leading ones end the warmup
        ({"max_cached_steps": 2}, (Mode.COMPUTE, Reason.MAX_CACHED)),
        ({"max_continuous_cached_steps": 0}, (Mode.COMPUTE, Reason.MAX_CONTINUOUS)),
        ({"residual_diff_threshold": 0.0}, (Mode.COMPUTE, Reason.DISABLED)),
        ({"has_state": False}, (Mode.COMPUTE, Reason.FIRST)),
    ],
)
def test_a_dynamic_zero_leaves_the_step_to_the_other_rules(changes: dict[str, Any], expected: tuple[Mode, Reason]):
    assert decide(2, "1101", "dynamic", **{"max_warmup_steps": 0, **changes}) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.25),
        ({"steps_computation_mask": "10"}, 0.25),
        ({"steps_computation_mask": "10", "steps_computation_policy": "static"}, math.inf),
        ({"steps_computation_policy": "static"}, 0.25),
    ],
)
def test_a_static_mask_allows_any_difference(options: dict[str, Any], expected: float) -> None:
    made = Options(residual_diff_threshold=0.25, **options)
    assert policy_of(made).threshold(made) == expected


def codes(model: Model, steps: int, differences: list[float]) -> str:
    """One letter per step, each with its own difference."""
    pairs = zip(schedule(steps), differences, strict=True)
    with Generation():
        return "".join(model.run([time], difference=difference) for time, difference in pairs)


@pytest.mark.parametrize("first", FIRST_BLOCKS)
@pytest.mark.parametrize("form", [str, lambda mask: [int(digit) for digit in mask]])
@pytest.mark.parametrize(
    ("mask", "policy", "expected"),
    [
        ("1", "static", "CCCCCCCC"),
        ("10", "static", "C.CCCCCC"),  # shorter than the run
        ("10010100", "static", "C..C.C.."),
        ("100101000000", "static", "C..C.C.."),  # longer than the run
        ("00000000", "static", "C......."),  # there is nothing yet to be reused
        ("10", "dynamic", "C.CCCCCC"),
        ("10010100", "dynamic", "C..C.CC."),  # the sixth difference is above the threshold
        ("100101000000", "dynamic", "C..C.CC."),
        ("11111111", "dynamic", "CCCCCCCC"),
        ("00000000", "dynamic", "C.....C."),
    ],
)
def test_patterns(mask: str, policy: str, form: Any, first: int, expected: str) -> None:
    changes = {"steps_computation_mask": form(mask), "steps_computation_policy": policy, "Fn_compute_blocks": first}
    model = Model(Attribution(), max_warmup_steps=0, residual_diff_threshold=0.5, **changes)
    assert codes(model, 8, [0.1] * 6 + [0.9, 0.1]) == expected


def test_a_mask_begins_again_with_every_generation() -> None:
    model = Model(Attribution(), steps_computation_mask="101", steps_computation_policy="static")
    for _ in range(2):
        assert codes(model, 5, [0.0] * 5) == "C.CCC"


def test_reasons_of_a_masked_run() -> None:
    model = Model(Attribution(), steps_computation_mask="0110", steps_computation_policy="static")
    assert codes(model, 5, [0.0] * 5) == "CCC.C"
    assert model.records()[0].reasons == {Reason.FIRST: 1, Reason.MASK: 3, Reason.REUSED: 1}
