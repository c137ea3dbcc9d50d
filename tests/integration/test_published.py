"""Interval, TeaCache, MagCache and EasyCache through ``torch.compile``: outputs and decisions are the oracle's."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fxcache.api import summary
from fxcache.options import Options
from tests.integration.published import EagerPublished
from tests.integration.walks import STEPS, compiled_of, interleaved, play, steps_of
from tests.models.tiny_trunk import tiny_trunk

TABLE = (1.0, 1.1, 1.05, 0.97, 0.95, 0.9, 0.99, 0.99, 0.98, 1.04, 0.9, 0.8)
CASES: dict[str, dict[str, Any]] = {
    "interval": {"method": "interval"},
    "interval of 2": {"method": "interval", "cache_interval": 2, "last_steps": 3, "max_warmup_steps": 4},
    "magcache": {"method": "magcache", "magnitude_ratios": TABLE, "residual_diff_threshold": 0.1},
    "magcache, few in a row": {
        "method": "magcache",
        "magnitude_ratios": TABLE,
        "residual_diff_threshold": 0.4,
        "max_continuous_cached_steps": 2,
        "retention_ratio": 0.4,
    },
    "teacache": {"method": "teacache", "residual_diff_threshold": 0.2},
    "teacache, polynomial": {
        "method": "teacache",
        "residual_diff_threshold": 1.5,
        "rescale_coefficients": [-20.0, 9.0, -0.1],
        "max_continuous_cached_steps": 3,
    },
    "easycache": {"method": "easycache", "residual_diff_threshold": 0.15},
    "easycache, few in a row": {
        "method": "easycache",
        "residual_diff_threshold": 0.4,
        "max_continuous_cached_steps": 2,
        "last_steps": 2,
    },
}


def options_of(name: str, **more: Any) -> Options:
    common = {"max_warmup_steps": 1, "last_steps": 1, "num_inference_steps": STEPS, "on_refusal": "raise"}
    return Options(**{**common, "inner_backend": "eager", **CASES[name], **more})


def check(name: str, two_streams: bool, tolerance: float = 1e-4, **more: Any) -> None:
    model, options = tiny_trunk(two_streams, blocks=3), options_of(name, **more)
    calls = interleaved(steps_of("first", 1), steps_of("second", 2))
    outputs, words = play(model, compiled_of(model, options), calls)
    oracle = EagerPublished(model, options, STEPS)
    for call, output in zip(calls, outputs, strict=True):
        expected = oracle.call((call.generation, call.branch), call.x, call.t, call.c)
        torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    assert words == {key: memory.decisions for key, memory in oracle.memories.items()}
    for made in summary(model).contexts:
        assert "." in made.decisions and "C." in made.decisions[made.decisions.index(".") :], made.decisions
        expected_numbers = oracle.memories[made.generation, made.branch].numbers
        numbers, found = ([math.nan if n is None else n for n in row] for row in (expected_numbers, made.differences))
        assert found == pytest.approx(numbers, rel=1e-4, nan_ok=True)


@pytest.mark.parametrize("two_streams", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_outputs_decisions_and_numbers_are_those_of_the_oracle(name: str, two_streams: bool) -> None:
    check(name, two_streams)


@pytest.mark.parametrize("name", ["interval", "magcache", "teacache, polynomial", "easycache"])
def test_through_inductor(name: str) -> None:
    check(name, two_streams=True, inner_backend="inductor")


def transfers(options: Options) -> tuple[list[int], int, str]:
    """Return per step how often `decide` fetched numbers, how often an indicator was measured, and the decisions."""
    model, calls = tiny_trunk(blocks=3), [call for call in steps_of("run", 1) if call.branch == "cond"]
    compiled = compiled_of(model, options)
    play(model, compiled, calls)  # what is traced is not counted
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        _, words = play(model, compiled, calls)
    decisions = [event for event in seen.events() if event.name == "fxcache::decide"]
    fetched = [sum(child.name == "aten::cat" for child in event.cpu_children) for event in decisions]
    measured = sum(event.name in ("fxcache::residual_diff", "fxcache::residual_products") for event in seen.events())
    (word,) = words.values()
    return fetched, measured, word


STATIC: dict[str, dict[str, Any]] = {
    "interval": CASES["interval"],
    "magcache": CASES["magcache"],
    "mask": {"steps_computation_mask": "110100100001", "steps_computation_policy": "static"},
    "preset": {"steps_computation_mask": "fast", "steps_computation_policy": "static"},
    "masked teacache": {**CASES["teacache"], "steps_computation_mask": "fast", "steps_computation_policy": "static"},
    "forecast": {**CASES["interval"], "calibrator": "taylorseer"},
}


@pytest.mark.parametrize("name", STATIC)
def test_what_the_host_decides_alone_measures_nothing_and_fetches_nothing(name: str) -> None:
    common = {"max_warmup_steps": 1, "last_steps": 1, "num_inference_steps": STEPS, "inner_backend": "eager"}
    fetched, measured, word = transfers(Options(**{**common, **STATIC[name]}))
    assert fetched == [0] * STEPS
    assert measured == 0
    assert word.count(".") >= 5


@pytest.mark.parametrize("name", ["teacache", "easycache"])
def test_what_is_compared_is_fetched_once_a_step(name: str) -> None:
    fetched, measured, word = transfers(options_of(name))
    forced = {"teacache": {0, STEPS - 1}, "easycache": {0, 1, STEPS - 1}}[name]
    assert fetched == [int(step not in forced) for step in range(STEPS)]
    assert measured == STEPS
    assert "." in word


def test_a_calibrator_predicts_between_the_steps_of_an_interval() -> None:
    """The schedule that TaylorSeer was published with: a straight line through the last two computed steps."""
    model, calls = tiny_trunk(blocks=3), [call for call in steps_of("run", 3) if call.branch == "cond"]
    options = options_of("interval", calibrator="taylorseer", calibrator_max_gain=None, max_warmup_steps=2)
    outputs, words = play(model, compiled_of(model, options), calls)
    assert list(words.values()) == ["CC..C..C..CC"]
    added: dict[int, torch.Tensor] = {}
    for call, output in zip(calls, outputs, strict=True):
        (tokens,), fixed = model.prefix(call.x, call.t, call.c)
        if words["run", "cond"][call.number] == "C":
            streams = (tokens,)
            for index in range(3):
                streams = model.block(index, streams, fixed)
            added[call.number] = streams[0] - tokens
        older, newer = sorted(added)[-2:] if len(added) > 1 else (0, 0)
        slope = (added[newer] - added[older]) / max(1, newer - older)
        predicted = tokens + added[newer] + slope * (call.number - newer)
        torch.testing.assert_close(output, model.suffix((predicted,), fixed, call.x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "word"), [("teacache", "C....CC....C"), ("easycache", "CC...CCC...C")])
def test_a_value_that_is_not_finite_is_computed_and_passes(name: str, word: str) -> None:
    """The step itself, the next one, which is compared with it, and one more where a rate is measured between both."""
    model, calls = tiny_trunk(blocks=3), [call for call in steps_of("run", 1) if call.branch == "cond"]
    calls[5] = replace(calls[5], x=calls[5].x * math.nan)
    outputs, words = play(model, compiled_of(model, options_of(name, residual_diff_threshold=1e6)), calls)
    assert words["run", "cond"] == word
    assert not bool(outputs[5].isfinite().any())
    assert all(bool(output.isfinite().all()) for step, output in enumerate(outputs) if step != 5)
