"""What a calibrator must never do: read another generation, keep a NaN, compile twice, change a computed bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import fxcache.api as api
from fxcache import (
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    RegressionCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from fxcache.runtime.attribution import attribution
from tests.integration.calibrated import EagerCalibrated
from tests.integration.scenes import equal, mean_error, worst
from tests.integration.walks import (
    CALIBRATORS,
    STEPS,
    Step,
    check,
    compiled_of,
    interleaved,
    mixed,
    options_of,
    play,
    steps_of,
)
from tests.models.tiny_trunk import TinyTrunk, tiny_trunk


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_a_generation_never_reads_the_one_before(calibrator):
    """Also where nobody says that it has begun, and where the one before stopped in the middle."""
    model = tiny_trunk(blocks=3)
    options = options_of(calibrator, "forecast")
    first, second = steps_of("first", 1), steps_of("second", 2)
    options = mixed(model, options, interleaved(first, second))
    compiled = compiled_of(model, options)
    alone, words = play(model, compiled, second)
    for before in (first, first[: STEPS // 2]):
        after, both = play(model, compiled, [*before, *second])
        assert equal(after[len(before) :], alone)
        assert {key: both[key] for key in words} == words
    attribution.forget()
    with torch.no_grad():
        ambient = [compiled(call.x.clone(), call.t.clone(), call.c).clone() for call in [*second, *second]]
    assert equal(ambient[: len(second)], alone) and equal(ambient[len(second) :], alone)


@pytest.mark.parametrize(
    ("calibrator", "decided"),
    [("taylorseer", "residual"), ("foca", "residual"), ("dmd", "forecast"), ("regression", "forecast")],
)
def test_a_step_that_is_not_finite_is_forgotten(calibrator, decided):
    """It is computed, the next one too, and until it has left the history only younger steps are used."""
    model = tiny_trunk(blocks=3)
    options = options_of(calibrator, decided, residual_diff_threshold=1.0, max_continuous_cached_steps=1)
    calls = steps_of("first", 1)
    for number in (10, 11):
        call = calls[number]
        calls[number] = Step(call.generation, call.branch, 5, torch.full_like(call.x, float("nan")), call.t, call.c)
    outputs, words = play(model, compiled_of(model, options), calls)
    assert set(words.values()) == {"CCC.CCC.C.C."}
    oracle = EagerCalibrated(model, options)
    for number, (call, output) in enumerate(zip(calls, outputs, strict=True)):
        expected = oracle.call((call.generation, call.branch), call.x, call.t, call.c)
        assert bool(output.isfinite().all()) == (number not in (10, 11))
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert words == {key: memory.decisions for key, memory in oracle.memories.items()}


def test_under_a_static_mask_it_is_gone_when_as_many_steps_have_been_stored():
    """Such a step is reused without a look at the device, so nothing else can tell."""
    mask = "11110" + "110" * 4
    model = tiny_trunk(blocks=3)
    options = options_of("taylorseer", "static", steps_computation_mask=mask)
    calls = steps_of("first", 1, count=len(mask))
    number = next(n for n, call in enumerate(calls) if call.number == 5)
    call = calls[number]
    calls[number] = Step(call.generation, call.branch, 5, torch.full_like(call.x, float("nan")), call.t, call.c)
    outputs, _ = play(model, compiled_of(model, options), calls)
    healthy = [bool(output.isfinite().all()) for output in outputs[number % 2 :: 2]]
    assert healthy == [n not in (5, 7) for n in range(len(mask))]


def test_two_sizes_of_a_dynamic_model_have_one_graph_and_one_history_each():
    model = tiny_trunk(two_streams=True)
    small, large = steps_of("small", 1, length=5), steps_of("large", 2, length=7)
    calls = interleaved(small, large)
    options = mixed(model, options_of("dmd", "forecast", "F2B1"), calls)
    graphs = counters["stats"]["unique_graphs"]
    compiled = compiled_of(model, options, dynamic=True)
    outputs, words = play(model, compiled, calls)
    assert counters["stats"]["unique_graphs"] == graphs + 1
    oracle = EagerCalibrated(model, options)
    for call, output in zip(calls, outputs, strict=True):
        key = (call.generation, call.branch)
        expected = oracle.call(key, call.x, call.t, call.c, seen=words[key][call.number])
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    assert words == {key: memory.decisions for key, memory in oracle.memories.items()} and len(words) == 4
    assert {made.shape for made in api.summary(model).contexts} == {(1, 5, 16), (1, 7, 16)}


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_half_precision_is_right_within_its_rounding_and_float32_histories_are_no_worse(calibrator):
    model = tiny_trunk(blocks=3).to(torch.bfloat16)
    exact = tiny_trunk(blocks=3).to(torch.bfloat16).double()
    calls = steps_of("first", 1)
    options = options_of(calibrator, "static", steps_computation_mask="1111101010")
    calls = [call for call in calls if call.number < 9]
    oracle = EagerCalibrated(exact, options)
    wide = [oracle.call((c.generation, c.branch), c.x.double(), c.t, c.c.double()) for c in calls]
    errors = {}
    for dtype in ("bfloat16", "float32"):
        compiled = compiled_of(model, options.replace(calibrator_dtype=dtype))
        outputs, words = play(model, compiled, [Step(*_bfloat16(call)) for call in calls])
        assert set(words.values()) == {"CCCCC.C.C"}
        reused = [number for number, call in enumerate(calls) if call.number in (5, 7)]
        errors[dtype] = mean_error([outputs[n] for n in reused], [wide[n] for n in reused])
    assert errors["float32"] <= 1.05 * errors["bfloat16"]
    assert errors["bfloat16"] < 0.05


def _bfloat16(call: Step) -> tuple[Any, ...]:
    return call.generation, call.branch, call.number, call.x.bfloat16(), call.t, call.c.bfloat16()


@pytest.mark.parametrize("calibrator", ["dmd", "regression"])
def test_what_is_never_reused_has_every_bit_of_the_model(calibrator):
    model = tiny_trunk(two_streams=True)
    calls = steps_of("first", 1)
    with torch.no_grad():
        eager = [model(call.x, call.t, call.c) for call in calls]
    options = options_of(calibrator, "forecast", "F2B1", max_warmup_steps=STEPS)
    outputs, words = play(model, compiled_of(model, options), calls)
    assert set(words.values()) == {"C" * STEPS}
    assert equal(outputs, eager)


@pytest.mark.parametrize(
    ("calibrator", "blocks"),
    [("taylorseer", "F0B0"), ("regression", "F1B0"), pytest.param("dmd", "F2B1", marks=pytest.mark.slow)],
)
def test_inductor_computes_every_bit_and_reuses_as_the_oracle_does(calibrator, blocks):
    model = tiny_trunk(blocks == "F2B1", blocks=4 if blocks == "F2B1" else 3)
    calls = steps_of("first", 1)
    options = mixed(model, options_of(calibrator, "forecast", blocks, inner_backend="inductor"), calls)
    outputs, words = check(model, options, calls)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        plain = [compiled(call.x, call.t, call.c).clone() for call in calls]
    computed = [n for n, call in enumerate(calls) if words[call.generation, call.branch][call.number] == "C"]
    assert equal([outputs[n] for n in computed], [plain[n] for n in computed])
    assert 0 < len(computed) < len(calls)


CONFIGS = (
    None,
    TaylorSeerCalibratorConfig(taylorseer_order=1, calibrator_max_gain=None),
    TaylorSeerCalibratorConfig(taylorseer_order=2, calibrator_max_gain=None),
    FoCaCalibratorConfig(calibrator_max_gain=None),
    DMDCalibratorConfig(calibrator_max_gain=None),
    RegressionCalibratorConfig(),
)
"""All predict the last of seven steps after five, the polynomials with a gain above the usual limit."""


def test_another_calibrator_is_one_compilation_and_another_step_is_none():
    model = tiny_trunk(blocks=3)
    calls = steps_of("first", 1)
    results: dict[Any, list[Tensor]] = {}
    for config in CONFIGS:
        options = {"Fn_compute_blocks": 1, "max_warmup_steps": 5, "residual_diff_threshold": 1.0}
        api.enable_cache(model, calibrator_config=config, inner_backend="eager", fullgraph=True, **options)
        graphs = counters["stats"]["unique_graphs"]
        results[config], words = play(model, model, calls)
        assert counters["stats"]["unique_graphs"] == graphs + 1
        assert set(words.values()) == {"CCCCC" + "." * (STEPS - 5)}
        again, _ = play(model, model, calls)
        assert equal(again, results[config])
        assert counters["stats"]["unique_graphs"] == graphs + 1
    api.disable_cache(model)
    last = [values[-1] for values in results.values()]
    assert all(not torch.equal(a, b) for n, a in enumerate(last) for b in last[:n])


@pytest.mark.parametrize("calibrator", ["dmd", "regression"])
def test_a_calibrator_that_is_off_everywhere_is_plain_reuse(calibrator):
    off = {"enable_calibrator": False, "enable_encoder_calibrator": False}
    model = tiny_trunk(two_streams=True)
    calls = steps_of("first", 1)
    options = options_of(calibrator, "forecast", "F2B1", residual_diff_threshold=1.0, **off)
    outputs, words = play(model, compiled_of(model, options), calls)
    plain = options.replace(calibrator=None, indicator="forecast")
    expected, same = play(model, compiled_of(model, plain), calls)
    assert words == same and worst(outputs, expected) < 1e-6
    assert set(words.values()) == {"CCC" + "." * (STEPS - 3)}


def test_a_trunk_with_one_stream_and_only_the_encoder_predicted_is_plain_reuse():
    model: TinyTrunk = tiny_trunk(blocks=3)
    calls = steps_of("first", 1)
    options = options_of("taylorseer", "residual", residual_diff_threshold=1.0, enable_calibrator=False)
    outputs, _ = play(model, compiled_of(model, options), calls)
    expected, _ = play(model, compiled_of(model, options.replace(calibrator=None)), calls)
    assert equal(outputs, expected)
