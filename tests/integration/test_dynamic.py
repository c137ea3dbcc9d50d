"""Changing sizes: as many compilations as plain Inductor, right results, one context per shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.compile_fx import compile_fx

from fxcache.api import context, summary
from fxcache.backend import fxcache as backend
from fxcache.runtime.attribution import attribution
from fxcache.summary import ContextSummary
from tests.integration.scenes import OPTIONS, worst
from tests.models.tiny import TinyModel
from tests.models.transformers import TRANSFORMERS

WIDTH = 32
STEPS = 2


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return TRANSFORMERS["flux"](1, single_layers=3)


def rounds(model: TinyModel, sizes: Sequence[int], compile_graph: Callable[..., Any], **compile_arguments: Any) -> Any:
    """Two steps of every size, taking turns; returns the outputs by step and the number of graphs compiled."""
    compiled_graphs = 0

    def counted(gm: Any, inputs: Any) -> Any:
        nonlocal compiled_graphs
        compiled_graphs += 1
        return compile_graph(gm, inputs)

    torch._dynamo.reset()
    attribution.forget()
    compiled = torch.compile(model.module, backend=counted, fullgraph=True, **compile_arguments)
    outputs = []
    for step in range(STEPS):
        for size in sizes:
            with context("branch", step_index=step):
                outputs.append(model.run(model.inputs(step, size=size), compiled).clone())
    return outputs, compiled_graphs


def through_fxcache(inner: str) -> Callable[..., Any]:
    return lambda gm, inputs: backend(gm, inputs, options={**OPTIONS, "inner_backend": inner})


def check(model: TinyModel, sizes: Sequence[int], inner: str, **compile_arguments: Any) -> int:
    """Compare with the graphs that run as they are; returns the number of compilations."""
    plain_graph = compile_fx if inner == "inductor" else lambda gm, inputs: gm
    plain, plain_graphs = rounds(model, sizes, plain_graph, **compile_arguments)
    eager, eager_graphs = rounds(model, sizes, through_fxcache("eager"), **compile_arguments)
    cached, graphs = eager, eager_graphs
    if inner != "eager":
        cached, graphs = rounds(model, sizes, through_fxcache(inner), **compile_arguments)
    contexts = summary(model.module).contexts
    assert graphs == eager_graphs == plain_graphs
    right(cached, eager, plain, len(sizes))
    one_context_per_shape(contexts, model, sizes)
    return plain_graphs


def right(cached: list[Tensor], eager: list[Tensor], plain: list[Tensor], sizes: int) -> None:
    assert worst(cached[:sizes], plain[:sizes]) < 1e-5
    assert worst(cached[sizes:], eager[sizes:]) < 1e-5
    assert worst(cached[sizes:], plain[sizes:]) > 1e-4  # the second steps were reused


def one_context_per_shape(contexts: Sequence[ContextSummary], model: TinyModel, sizes: Sequence[int]) -> None:
    tokens = [rows * columns for rows, columns in (model.grids[size] for size in sizes)]
    assert [made.shape for made in contexts] == [(1, count, 4) for count in tokens]
    assert [made.decisions for made in contexts] == ["C."] * len(sizes)
    # the indicator and one stream in float32, and their two flags
    assert [made.state_bytes for made in contexts] == [4 * (2 * count * WIDTH + 2) for count in tokens]


@pytest.mark.slow
def test_five_sizes_of_a_dynamic_model(model: TinyModel) -> None:
    # one, or two where Dynamo takes sizes for equal that are so only in the first call
    assert check(model, range(5), "inductor", dynamic=True) <= 2


def test_the_second_size_makes_a_model_dynamic(model: TinyModel) -> None:
    assert check(model, range(5), "eager") <= 3


def test_fixed_sizes_are_one_compilation_each(model: TinyModel) -> None:
    assert check(model, range(5), "eager", dynamic=False) == 5
