"""What Inductor makes of a rewritten graph, against plain Inductor, against eager mode, against float64.

In float32 the conditional changes no bit. In half precision it does: Inductor keeps float32 inside a fused kernel and
rounds where the kernel ends, and kernels end at the conditional. So there the error against float64 counts, and bits
only under `emulate_precision_casts`, which rounds as eager mode does, after every operation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from tests.integration.scenes import (
    DECISIONS,
    Run,
    equal,
    fxcache_of,
    in_double,
    mean_error,
    plain,
    play,
    scene,
    worst,
)
from tests.models.tiny import TinyModel
from tests.models.transformers import TRANSFORMERS
from tests.slow import some_slow

MODELS: dict[str, tuple[Callable[..., TinyModel], float]] = {
    "flux": (lambda **kw: TRANSFORMERS["flux"](3, single_layers=1, **kw), 0.5),
    "wan": (lambda **kw: TRANSFORMERS["wan"](3, **kw), 0.2),
    "sd3": (lambda **kw: TRANSFORMERS["sd3"](3, **kw), 0.5),
    "sequential_dit": (lambda **kw: TRANSFORMERS["sequential_dit"](4, **kw), 0.5),
}
"""Builder, and a threshold between the small step and the jump of the scene."""


@dataclass(frozen=True)
class Compared:
    """One scene in float32, made in all the ways."""

    eager: list[Tensor]
    plain: list[Tensor]
    never: Run
    cached: Run
    cached_eagerly: Run


@pytest.fixture(scope="module", params=some_slow(MODELS, ("wan", "sd3")))
def compared(request: pytest.FixtureRequest) -> Compared:
    build, threshold = MODELS[request.param]
    model = build()
    calls = scene(model)

    def run(**options: Any) -> Run:
        torch._dynamo.reset()
        return play(model, fxcache_of(model.module, **options), calls)

    return Compared(
        eager=[model.run(call) for call in calls],
        plain=plain(model, calls),
        never=run(residual_diff_threshold=0),
        cached=run(residual_diff_threshold=threshold),
        cached_eagerly=run(residual_diff_threshold=threshold, inner_backend="eager"),
    )


def test_a_threshold_of_zero_leaves_every_bit(compared: Compared) -> None:
    assert equal(compared.never.outputs, compared.plain)


def test_a_step_that_is_computed_has_every_bit(compared: Compared) -> None:
    assert compared.cached.decisions == DECISIONS
    assert equal(compared.cached.computed(), compared.cached.choose(compared.plain))
    assert equal(compared.cached_eagerly.computed(), compared.cached_eagerly.choose(compared.eager))


def test_the_inner_compiler_changes_neither_decisions_nor_reused_steps(compared: Compared) -> None:
    inductor, eager = compared.cached, compared.cached_eagerly
    assert inductor.decisions == eager.decisions
    assert inductor.differences[1:] == pytest.approx(eager.differences[1:], rel=1e-4, abs=1e-7)
    assert inductor.state_bytes == eager.state_bytes > 0
    assert worst(inductor.outputs, eager.outputs) < 1e-5
    assert worst(inductor.outputs[1:2], compared.plain[1:2]) > 1e-4  # it was reused indeed


HALF: dict[str, Callable[[], TinyModel]] = {
    "flux bfloat16": lambda: MODELS["flux"][0](dtype=torch.bfloat16),
    "wan bfloat16": lambda: MODELS["wan"][0](dtype=torch.bfloat16),
    "sd3 bfloat16": lambda: TRANSFORMERS["sd3"](4, dtype=torch.bfloat16),
    "sequential_dit float16": lambda: MODELS["sequential_dit"][0](dtype=torch.float16),
}
"""The conditional rounds the tokens twice more, whatever the depth, which counts for less in a deeper model."""


@dataclass(frozen=True)
class Halves:
    """Errors against float64 over eight inputs, and what a call with equal values gives."""

    plain: float
    cached: float
    again: Run


@pytest.fixture(scope="module", params=some_slow(HALF, ("wan bfloat16", "sd3 bfloat16")))
def halves(request: pytest.FixtureRequest) -> Halves:
    model = HALF[request.param]()
    calls = [model.inputs(seed=seed) for seed in range(8)]
    references = in_double(model, calls)
    outputs = plain(model, calls)
    torch._dynamo.reset()
    compiled = fxcache_of(model.module)
    first = [play(model, compiled, [call]) for call in calls]
    assert [run.decisions for run in first] == ["C"] * len(calls)
    return Halves(
        mean_error(outputs, references),
        mean_error([run.outputs[0] for run in first], references),
        play(model, compiled, [calls[0], model.vary(calls[0], amount=0.0)]),
    )


def test_half_precision_is_as_exact_as_without(halves: Halves) -> None:
    assert 0 < halves.cached <= 1.1 * halves.plain


def test_equal_values_have_no_difference_in_half_precision(halves: Halves) -> None:
    assert halves.again.differences == (None, 0.0)
    assert halves.again.decisions == "C."


def test_rounded_after_every_operation_half_precision_keeps_every_bit() -> None:
    model = MODELS["sd3"][0](dtype=torch.bfloat16)
    calls = scene(model)
    rounding = {"emulate_precision_casts": True}
    outputs = plain(model, calls, options=rounding)
    torch._dynamo.reset()
    run = play(model, fxcache_of(model.module, inner_options=rounding), calls)
    assert run.decisions == DECISIONS
    assert equal(run.computed(), run.choose(outputs))


def test_inputs_are_asserted_and_weights_are_not() -> None:
    """Dynamo's guards have compared the weights already; a model has a thousand, a reused step reads a few."""
    model = TRANSFORMERS["sequential_dit"](4)
    call = model.inputs()
    tensors = [value for value in call.values() if isinstance(value, Tensor)]

    def asserted(compiled: Callable[..., Any]) -> int:
        _, (code,) = run_and_get_code(lambda: model.run(call, compiled))
        return len(re.findall(r"assert_size_stride\(arg\w+, ", code))

    weights = len(list(model.module.parameters()))
    assert asserted(torch.compile(model.module, fullgraph=True)) == weights + len(tensors)
    torch._dynamo.reset()
    assert asserted(fxcache_of(model.module)) == len(tensors)
