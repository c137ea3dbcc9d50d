"""Settings around the call: modes and options of the inner compiler, inference mode, memory layouts, autocast."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor

import fxcache.inner
from fxcache.api import context, summary
from fxcache.runtime.attribution import attribution
from tests.integration.scenes import (
    DECISIONS,
    equal,
    fxcache_of,
    in_double,
    mean_error,
    plain,
    play,
    scene,
    worst,
)
from tests.models.foreign import sequential_dit
from tests.models.tiny import TinyModel


@pytest.fixture
def model() -> TinyModel:
    return sequential_dit(3)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Inductor's settings whenever it is asked to compile; it only runs the graph."""
    seen: list[dict[str, Any]] = []

    def recorded(gm: Any, inputs: Any, **facts: Any) -> Callable[..., Any]:
        seen.append(torch._inductor.config.get_config_copy())
        return fxcache.inner._boxed(gm)

    monkeypatch.setattr(fxcache.inner, "compile_fx_inner", recorded)
    return seen


@pytest.mark.parametrize("mode", ["max-autotune-no-cudagraphs", "reduce-overhead"])
def test_a_mode_reaches_inductor(model: TinyModel, settings: list[dict[str, Any]], mode: str) -> None:
    compiled = torch.compile(model.module, backend="fxcache", mode=mode, fullgraph=True)
    play(model, compiled, scene(model))
    expected = torch._inductor.list_mode_options(mode)
    assert expected and len(settings) == 1
    assert {name: settings[0][name] for name in expected} == expected


MODES = ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_among_the_inner_options(model: TinyModel, settings: list[dict[str, Any]], mode: str) -> None:
    compiled = fxcache_of(model.module, inner_options={"mode": mode, "coordinate_descent_tuning": False})
    assert play(model, compiled, scene(model)).decisions == DECISIONS
    expected = {**torch._inductor.list_mode_options(mode), "coordinate_descent_tuning": False}
    assert [{name: seen[name] for name in expected} for seen in settings] == [expected]


@pytest.mark.parametrize("by_torch", [False, True])
def test_a_mode_that_inductor_does_not_have(model: TinyModel, by_torch: bool) -> None:
    if by_torch:
        compiled = torch.compile(model.module, backend="fxcache", mode="fast")
    else:
        compiled = fxcache_of(model.module, inner_options={"mode": "fast"})
    with pytest.raises(Exception, match=r"inner_options: mode='fast': expected one of 'default', .*'max-autotune'"):
        model.run(scene(model)[0], compiled)


def test_a_setting_that_inductor_does_not_have(model: TinyModel) -> None:
    compiled = fxcache_of(model.module, inner_options={"max_autotunes": True})
    said = "inner_options: Inductor has no setting 'max_autotunes': did you mean 'max_autotune'?"
    with pytest.raises(Exception, match=re.escape(said)):
        model.run(scene(model)[0], compiled)


def test_matmul_precision(model: TinyModel) -> None:
    before = torch.get_float32_matmul_precision()
    calls = scene(model)
    try:
        torch.set_float32_matmul_precision("high")
        outputs = plain(model, calls, backend="aot_eager")
        torch._dynamo.reset()
        run = play(model, fxcache_of(model.module, inner_backend="eager"), calls)
    finally:
        torch.set_float32_matmul_precision(before)
    assert run.decisions == DECISIONS
    assert equal(run.computed(), run.choose(outputs))


@pytest.mark.parametrize("threshold", [0, 0.5], ids=["unmodified", "rewritten"])
def test_inner_options_reach_inductor(model: TinyModel, settings: list[dict[str, Any]], threshold: float) -> None:
    inner = {"max_fusion_size": 7, "cpp.simdlen": 256}
    compiled = fxcache_of(model.module, residual_diff_threshold=threshold, inner_options=inner)
    run = play(model, compiled, scene(model))
    assert run.decisions == (DECISIONS if threshold else "CCCC")
    assert [{name: seen[name] for name in inner} for seen in settings] == [inner]
    assert torch._inductor.config.max_fusion_size != 7


def without_gradients(step: int) -> Any:
    return torch.no_grad()


def in_inference_mode(step: int) -> Any:
    return torch.inference_mode()


def taking_turns(step: int) -> Any:
    return torch.inference_mode() if step % 2 else torch.no_grad()


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_inference_mode(model: TinyModel, inner: str) -> None:
    results: dict[Any, list[Tensor]] = {}
    for mode in (without_gradients, in_inference_mode, taking_turns):
        torch._dynamo.reset()
        attribution.forget()
        compiled = fxcache_of(model.module, inner_backend=inner)
        results[mode] = []
        for step in range(4):
            with mode(step):
                call = scene(model)[step]
                with context("branch", step_index=step):
                    results[mode].append(model.call(call, compiled).clone())
        assert [made.decisions for made in summary(model.module).contexts] == [DECISIONS]
    assert equal(results[without_gradients], results[in_inference_mode])
    assert equal(results[without_gradients], results[taking_turns])


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def sliced(x: Tensor) -> Tensor:
    wide = torch.stack([x, torch.full_like(x, 9.0)], -1)
    return wide[..., 0]


@pytest.mark.parametrize("layout", [channels_last, sliced])
def test_latents_in_any_layout(model: TinyModel, layout: Callable[[Tensor], Tensor]) -> None:
    calls = [{**call, "x": layout(call["x"])} for call in scene(model)]
    assert not calls[0]["x"].is_contiguous()
    outputs = plain(model, calls)
    torch._dynamo.reset()
    run = play(model, fxcache_of(model.module), calls)
    torch._dynamo.reset()
    eager = play(model, fxcache_of(model.module, inner_backend="eager"), calls)
    assert run.decisions == eager.decisions == DECISIONS
    assert equal(run.computed(), run.choose(outputs))
    assert worst(run.outputs, eager.outputs) < 1e-5


def test_autocast_around_the_call(model: TinyModel) -> None:
    calls = scene(model)
    exact = in_double(model, calls)
    with torch.autocast("cpu", torch.bfloat16):
        eager = [model.run(call) for call in calls]
        outputs = plain(model, calls)
        torch._dynamo.reset()
        run = play(model, fxcache_of(model.module), calls)
        torch._dynamo.reset()
        eagerly = play(model, fxcache_of(model.module, inner_backend="eager"), calls)
    assert run.decisions == eagerly.decisions == DECISIONS
    assert equal(eagerly.computed(), eagerly.choose(eager))
    assert mean_error(run.computed(), run.choose(exact)) <= 1.1 * mean_error(run.choose(outputs), run.choose(exact))
