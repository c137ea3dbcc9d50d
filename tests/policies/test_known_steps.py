"""What needs the number of steps: presets of masks, final steps that are always computed, tables of ratios."""

from __future__ import annotations

from typing import Any

import pytest

import fxcache
from fxcache.runtime.attribution import Attribution, Reason
from fxcache.runtime.generation import Branch, BranchContext, Generation, begin_loop, end_loop
from fxcache.runtime.signals import _cache_context
from tests.runtime.loop import Model, schedule

FAST_10, FAST_12 = "CCC.C..C.C", "CCC.C..C..CC"
PRESET = {"steps_computation_mask": "fast", "steps_computation_policy": "static"}


def masked(steps: int) -> str:
    return "".join(".C"[digit] for digit in fxcache.steps_mask(total_steps=steps, mask_policy="fast"))


def test_the_words_below_are_the_masks() -> None:
    assert (masked(10), masked(12)) == (FAST_10, FAST_12)


def test_the_option_says_the_number_of_steps() -> None:
    model = Model(Attribution(), **PRESET, num_inference_steps=10)
    assert model.run(schedule(10)) == FAST_10


def test_the_generation_says_it() -> None:
    model = Model(Attribution(), **PRESET)
    for steps, word in ((10, FAST_10), (12, FAST_12)):
        with Generation(num_inference_steps=steps):
            assert model.run(schedule(steps)) == word


def test_the_progress_bar_of_the_pipeline_says_it() -> None:
    model = Model(Attribution(), **PRESET)
    for steps, word in ((12, FAST_12), (10, FAST_10)):
        begin_loop(steps)
        assert model.run(schedule(steps)) == word
        end_loop()


def test_the_branch_says_it() -> None:
    model, word = Model(Attribution(), **PRESET), ""
    for step, time in enumerate(schedule(12)):
        with BranchContext("cond", step, 12):
            word += model.run([time])
    assert word == FAST_12


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (PRESET, "CC..CC"),
        ({"method": "interval", "cache_interval": 99, "last_steps": 2}, "C...CC"),
        (
            {"method": "magcache", "magnitude_ratios": [1.0] * 8 + [1.5] + [1.0] * 3, "retention_ratio": 0.1},
            "C..C..",
        ),
    ],
)
def test_a_model_that_makes_the_second_half_of_the_steps_is_told_where_they_are(changes: Any, word: str) -> None:
    model, found = Model(Attribution(), **changes), ""
    begin_loop(None)
    for step, time in enumerate(schedule(12)):
        if step >= 6:
            _cache_context.set(Branch("cond", step, 12))
            found += model.run([time])
    assert found == word


def test_the_option_wins_over_the_hint() -> None:
    model = Model(Attribution(), **PRESET, num_inference_steps=10)
    begin_loop(12)
    assert model.run(schedule(12)) == FAST_10 + "CC"


def test_a_scheduler_that_calls_more_often_than_its_bar_says_computes_what_is_left() -> None:
    model = Model(Attribution(), **PRESET, last_steps=1)
    begin_loop(10)
    assert model.run(schedule(19)) == FAST_10 + "C" * 9


@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_without_a_number_a_preset_computes_every_step_and_says_why(policy: str) -> None:
    model = Model(Attribution(), **{**PRESET, "steps_computation_policy": policy})
    with Generation():
        assert model.run(schedule(10)) == "C" * 10
    assert model.records()[0].reasons == {Reason.STEPS_UNKNOWN: 10}


def test_a_dynamic_preset_leaves_its_zeros_to_the_other_rules() -> None:
    model = Model(Attribution(), steps_computation_mask="fast", max_warmup_steps=0, num_inference_steps=10)
    assert model.run(schedule(10), difference=0.1) == FAST_10
    model = Model(Attribution(), steps_computation_mask="fast", max_warmup_steps=0, num_inference_steps=10)
    assert model.run(schedule(10), difference=1.1) == "C" * 10


METHODS: dict[str, dict[str, Any]] = {
    "dbcache": {},
    "interval": {"method": "interval", "cache_interval": 99},
    "teacache": {"method": "teacache", "residual_diff_threshold": 1e9},
    "easycache": {"method": "easycache", "residual_diff_threshold": 1e9, "max_warmup_steps": 2},
    "magcache": {"method": "magcache", "magnitude_ratios": [1.0, 1.0]},
}


@pytest.mark.parametrize("last", [0, 1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_the_last_steps_are_computed(method: str, last: int) -> None:
    model = Model(Attribution(), **METHODS[method], last_steps=last)
    with Generation(num_inference_steps=8):
        word = model.run(schedule(8))
    first = 2 if method in ("magcache", "easycache") else 1
    assert word == "C" * first + "." * (8 - first - last) + "C" * last
    (record,) = model.records()
    assert record.reasons.get(Reason.LAST, 0) == last
    assert record.notes == ()


@pytest.mark.parametrize("method", ["interval", "teacache"])
def test_without_a_number_the_last_steps_are_not_guessed_and_the_record_says_so(method: str) -> None:
    model = Model(Attribution(), **METHODS[method], last_steps=2)
    with Generation():
        assert model.run(schedule(8)) == "C......."
    (record,) = model.records()
    assert record.notes == ("last_steps=2 has no effect: the number of steps is not known",)


def test_a_static_mask_decides_the_last_steps_too() -> None:
    model = Model(Attribution(), steps_computation_mask="1000", steps_computation_policy="static", last_steps=2)
    with Generation(num_inference_steps=4):
        assert model.run(schedule(4)) == "C..."
