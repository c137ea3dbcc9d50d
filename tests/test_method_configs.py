"""The configs of interval, TeaCache, MagCache and EasyCache: what they hold, and how they reach the model."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import fxcache
from fxcache.errors import OptionError
from fxcache.options import Options
from tests.integration.walks import STEPS, steps_of
from tests.models.tiny_trunk import tiny_trunk

TABLE = (1.0, *[0.98] * (STEPS - 1))
CONFIGS: dict[str, Any] = {
    "interval": fxcache.IntervalConfig(),
    "teacache": fxcache.TeaCacheConfig(residual_diff_threshold=0.2),
    "magcache": fxcache.MagCacheConfig(magnitude_ratios=TABLE),
    "easycache": fxcache.EasyCacheConfig(residual_diff_threshold=0.3),
}
OWN_DEFAULTS = {"max_warmup_steps": 1, "last_steps": 1}
"""The methods that skip the whole trunk were published so."""


@pytest.mark.parametrize("method", CONFIGS)
def test_fields_are_options_with_their_names_and_defaults(method: str) -> None:
    of_options = {entry.name: entry for entry in dataclasses.fields(Options)}
    expected = {name: entry.default for name, entry in of_options.items()} | OWN_DEFAULTS
    if method == "magcache":
        expected["max_continuous_cached_steps"] = 3
    for entry in dataclasses.fields(CONFIGS[method]):
        if entry.name != "magnitude_ratios":
            assert entry.default == expected[entry.name], entry.name


@pytest.mark.parametrize("method", CONFIGS)
def test_options_of_a_config(method: str) -> None:
    config = CONFIGS[method]
    options = config.to_options(inner_backend="eager", last_steps=2)
    assert (options.method, options.inner_backend, options.last_steps) == (method, "eager", 2)
    given = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(config)}
    assert all(getattr(options, name) == value for name, value in given.items() if name != "last_steps")


def test_values_are_checked_when_it_is_built() -> None:
    with pytest.raises(OptionError, match=r"^cache_interval=0: expected an integer >= 1$"):
        fxcache.IntervalConfig(cache_interval=0)
    with pytest.raises(OptionError, match=r"^magnitude_ratios=\(\): expected one number > 0 per step"):
        fxcache.MagCacheConfig(magnitude_ratios=[])
    with pytest.raises(TypeError, match="magnitude_ratios"):
        fxcache.MagCacheConfig()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="residual_diff_threshold"):
        fxcache.IntervalConfig(residual_diff_threshold=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize("method", CONFIGS)
def test_enable_cache_takes_it_and_summary_and_explain_speak_of_it(method: str) -> None:
    model, config = tiny_trunk(two_streams=True), CONFIGS[method]
    calls = [call for call in steps_of("run", 1) if call.branch == "cond"]
    fxcache.enable_cache(model, cache_config=config, inner_backend="eager", on_refusal="raise")
    run = fxcache.generation(num_inference_steps=STEPS)
    with torch.no_grad(), run:
        for call in calls:
            model(call.x, call.t, call.c)
    (context,) = fxcache.summary(model).contexts
    assert context.decisions[0] == context.decisions[-1] == "C" and "." in context.decisions
    compared = method in ("teacache", "easycache")
    assert any(difference is not None for difference in context.differences) is compared
    assert str(fxcache.summary(model)).count("last_steps") == 1
    explained = fxcache.explain(model, calls[0].x, calls[0].t, calls[0].c)
    assert (explained.refusal, explained.first_blocks) == (None, 0)
    assert explained.state_bytes == context.state_bytes
    assert (explained.indicator is not None) is compared
    assert ("none: the host alone decides" in str(explained)) is not compared
    again = fxcache.explain(model, calls[0].x, calls[0].t, calls[0].c, fxcache_config=config)
    assert (again.refusal, again.state_bytes) == (None, explained.state_bytes)
    run.close()
    fxcache.disable_cache(model)


def test_without_a_number_of_steps_summary_says_what_does_not_hold() -> None:
    model = tiny_trunk()
    fxcache.enable_cache(model, cache_config=fxcache.IntervalConfig(), inner_backend="eager")
    with torch.no_grad(), fxcache.generation():
        for call in steps_of("run", 1):
            model(call.x, call.t, call.c)
    printed = str(fxcache.summary(model))
    assert printed.count("last_steps=1 has no effect: the number of steps is not known") == 2
    fxcache.disable_cache(model)
