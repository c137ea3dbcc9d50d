"""Interval, TeaCache, MagCache and EasyCache: the host's rules alone."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcache.options import Options
from fxcache.policies import POLICIES, Counters, policy_of
from fxcache.policies.magcache import error, spread_ratios
from fxcache.runtime.attribution import Attribution, Mode, Outcome, Reason, TensorSpec
from fxcache.runtime.generation import Generation
from tests.runtime.loop import Model, latents, schedule

SKIPS_TRUNK = ("interval", "teacache", "magcache", "easycache")
TABLE = {"magnitude_ratios": (1.0, 0.9, 0.8)}


def options_of(method: str, **changes: Any) -> Options:
    given = {"max_warmup_steps": 1, **(TABLE if method == "magcache" else {}), **changes}
    return Options(method=method, **given)  # type: ignore[arg-type]


def word(method: str, steps: int, difference: float = 0.0, total: int | None = None, **changes: Any) -> str:
    given = {**(TABLE if method == "magcache" else {}), **changes}
    model = Model(Attribution(), method=method, **given)
    with Generation(num_inference_steps=total):
        return model.run(schedule(steps), difference=difference)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "C..C..C..C"),
        ({"cache_interval": 2}, "C.C.C.C.C."),
        ({"cache_interval": 9}, "C........C"),
        ({"max_warmup_steps": 3}, "CCC..C..C."),
        ({"max_warmup_steps": 0}, "C..C..C..C"),
        ({"max_continuous_cached_steps": 1}, "C.C.C.C.C."),
        ({"max_cached_steps": 3}, "C..C.CCCCC"),
        ({"steps_computation_mask": "1010000000"}, "C.C..C..C."),
        ({"steps_computation_mask": "1000000011", "steps_computation_policy": "static"}, "C.......CC"),
        ({"residual_diff_threshold": 0.0}, "C..C..C..C"),
    ],
)
def test_intervals(changes: dict[str, Any], expected: str) -> None:
    assert word("interval", 10, **changes) == expected


def test_an_interval_says_why_it_computes() -> None:
    model = Model(Attribution(), method="interval")
    with Generation():
        model.run(schedule(7))
    assert model.records()[0].reasons == {Reason.WARMUP: 1, Reason.REUSED: 4, Reason.INTERVAL: 2}


@pytest.mark.parametrize("method", SKIPS_TRUNK)
def test_the_methods_that_skip_the_trunk_have_no_first_blocks_unless_asked(method: str) -> None:
    assert options_of(method).resolve_blocks(20) == (0, 0)
    assert options_of(method, Fn_compute_blocks=2).resolve_blocks(20) == (2, 0)
    assert Options().resolve_blocks(20) == (5, 0)


def test_what_needs_an_indicator() -> None:
    observing = {method: options_of(method).observes for method in POLICIES}
    assert [method for method, observes in observing.items() if not observes] == ["interval", "magcache"]
    static = {"steps_computation_mask": "10", "steps_computation_policy": "static"}
    assert not any(options_of(method, **static).observes for method in POLICIES)
    assert options_of("interval", calibrator="regression").observes


@pytest.mark.parametrize(
    ("method", "changes", "expected"),
    [
        ("interval", {}, True),
        ("interval", {"cache_interval": 1}, False),
        ("interval", {"max_cached_steps": 0}, False),
        ("teacache", {"residual_diff_threshold": 0.0}, False),
        ("easycache", {"residual_diff_threshold": -1.0}, False),
        ("magcache", {"residual_diff_threshold": 0.0}, False),
        ("magcache", {}, True),
        ("dbcache", {"steps_computation_mask": "fast", "num_inference_steps": 3}, False),
        ("dbcache", {"steps_computation_mask": "fast", "num_inference_steps": 4}, True),
        ("dbcache", {"steps_computation_mask": "fast"}, True),
    ],
)
def test_what_can_reuse(method: str, changes: dict[str, Any], expected: bool) -> None:
    assert options_of(method, **changes).can_reuse is expected


def test_the_sum_of_teacache_grows_with_reused_steps_and_ends_with_a_computed_one() -> None:
    options, counters = options_of("teacache", rescale_coefficients=(2.0, 1.0)), Counters()
    policy = policy_of(options)
    assert policy.scale(options, counters) == (0.0, (2.0, 1.0))
    # the number that a call reports is the sum with its own change
    for reused, total, expected in ((False, None, 0.0), (True, 0.1, 0.1), (True, 0.3, 0.3), (False, 0.9, 0.0)):
        policy.after(counters, reused, total)
        assert policy.scale(options, counters) == (expected, (2.0, 1.0))
    assert (counters.step, counters.cached_steps, counters.computed_steps) == (4, 2, 2)


@pytest.mark.parametrize("method", ["teacache", "easycache"])
def test_a_sum_is_compared_with_thresholds_above_one_too(method: str) -> None:
    options = options_of(method, residual_diff_threshold=1.5)
    assert policy_of(options).threshold(options) == 1.5
    static = options.replace(steps_computation_mask="10", steps_computation_policy="static")
    assert policy_of(static).threshold(static) == math.inf


def test_easycache_computes_two_steps_before_it_knows_the_rate() -> None:
    options = options_of("easycache", max_warmup_steps=0)
    decide = policy_of(options).decide_before
    assert decide(options, Counters(), False) == (Mode.COMPUTE, Reason.FIRST)
    assert decide(options, Counters(step=1, computed_steps=1), True) == (Mode.COMPUTE, Reason.FIRST)
    assert decide(options, Counters(step=2, computed_steps=2), True) == (Mode.DECIDE, Reason.DIFFERENCE)


def test_easycache_measures_the_rate_again_where_its_state_is_new() -> None:
    model = Model(Attribution(), method="easycache", residual_diff_threshold=1e9, max_warmup_steps=0)
    word = ""
    with Generation():
        for step, time in enumerate(schedule(8)):
            lease = model.begin(latents(), time, None)
            lease.state((TensorSpec((4 if step < 4 else 5,), torch.float32, torch.device("cpu")),))
            reused = lease.mode is not Mode.COMPUTE
            word += "." if reused else "C"
            model.attribution.end(lease, Outcome(reused, 0.0 if reused else None))
    assert word == "CC..CC.."


def diffusers_rule(table: list[float], threshold: float, most: int, retention: float) -> str:
    """MagCache as its hook counts: three numbers that a computed step zeroes."""
    found, product, wrong, skipped = "", 1.0, 0.0, 0
    for step, ratio in enumerate(table):
        reuse = False
        if step >= int(retention * len(table) + 0.5) and step > 0:
            product *= ratio
            wrong += abs(1 - product)
            skipped += 1
            reuse = wrong <= threshold and skipped <= most
        found += "." if reuse else "C"
        if not reuse:
            product, wrong, skipped = 1.0, 0.0, 0
    return found


@given(
    st.lists(st.floats(0.5, 2.0), min_size=1, max_size=30),
    st.floats(1e-3, 2.0),
    st.integers(0, 5),
    st.floats(0.0, 1.0),
)
def test_magcache_decides_as_its_hook_does(table: list[float], threshold: float, most: int, retention: float) -> None:
    changes = {"residual_diff_threshold": threshold, "max_continuous_cached_steps": most}
    expected = diffusers_rule(table, threshold, most, retention)
    found = word("magcache", len(table), total=len(table), magnitude_ratios=table, retention_ratio=retention, **changes)
    assert found == (expected if most else "C" * len(table))


def test_magcache_computes_every_step_without_their_number_and_behind_their_end() -> None:
    model = Model(Attribution(), method="magcache", magnitude_ratios=[1.0] * 4, retention_ratio=0.0)
    with Generation():
        assert model.run(schedule(6)) == "CCCCCC"
    assert model.records()[-1].reasons == {Reason.WARMUP: 1, Reason.STEPS_UNKNOWN: 5}
    assert word("magcache", 6, total=4, magnitude_ratios=[1.0] * 4, retention_ratio=0.0) == "C...CC"


def test_magcache_counts_the_steps_that_nobody_called() -> None:
    options = options_of("magcache", magnitude_ratios=(1.0, 0.9, 0.9, 0.9), residual_diff_threshold=0.3)
    decide = policy_of(options).decide_before
    counters = Counters(step=3, computed_steps=1, last_computed_step=0, total_steps=4)
    assert error((0.9, 0.9, 0.9)) == pytest.approx(0.1 + 0.19 + 0.271)
    assert decide(options, counters, True) == (Mode.COMPUTE, Reason.ERROR)
    assert decide(options.replace(residual_diff_threshold=0.57), counters, True)[0] is Mode.REUSE


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=30), st.integers(2, 60))
def test_a_table_for_another_number_of_steps_has_the_same_magnitudes(table: list[float], steps: int) -> None:
    spread = spread_ratios(tuple(table), steps)
    assert len(spread) == steps
    given_at = np.linspace(0, 1, len(table))
    magnitudes = np.cumsum([0.0, *np.log(table[1:])])
    found = list(itertools.accumulate(spread[1:], lambda a, b: a * b, initial=1.0))
    assert np.log(found) == pytest.approx(np.interp(np.linspace(0, 1, steps), given_at, magnitudes), abs=1e-9)
    assert spread_ratios(tuple(table), len(table)) == tuple(table)


def test_one_step_and_one_entry() -> None:
    assert spread_ratios((1.0, 0.5), 1) == (1.0,)
    assert spread_ratios((1.0,), 3) == (1.0, 1.0, 1.0)
