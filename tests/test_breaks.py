"""Which graphs belong to one model, and when its refusal is said."""

from __future__ import annotations

import traceback
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fxcache.api as api
from fxcache.breaks import broken_model
from fxcache.errors import Refusal, RefusalError
from tests.models.tiny_trunk import Streams, TinyTrunk
from tests.test_backend import OPTIONS, WARN, decisions, loop, refusals


def graph(graph_break: bool) -> Any:
    reason = SimpleNamespace(
        reason="Call to f\n  Hint: none",
        user_stack=[traceback.FrameSummary("model.py", 7, "forward")],
        graph_break=graph_break,
    )
    return SimpleNamespace(compile_subgraph_reason=reason)


def test_a_whole_model_is_not_broken():
    assert broken_model(graph(False), {}) is None
    assert broken_model(torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph()), {}) is None


def test_all_graphs_of_one_compilation_are_one_model_until_it_has_spoken():
    owner, said = {"a": 1}, []
    model = broken_model(graph(True), owner)
    assert model is not None and broken_model(graph(False), owner) is model
    assert broken_model(graph(True), dict(owner)) is not model  # an equal mapping is another compilation
    model = broken_model(graph(True), owner)
    assert model is not None
    model.refusals += [Refusal("nothing here"), Refusal("no stack", ("mul", "add"))]
    run = model.watch(lambda x: x + 1, said.append)
    assert run(1) == 2 and said == []
    assert [run(2), run(3)] == [3, 4]
    assert said == [
        Refusal(
            "graph breaks cut the model into at least 2 graphs, none of them with a usable trunk: no stack; "
            "one of the breaks: Call to f at model.py:7",
            ("mul", "add"),
        )
    ]
    assert broken_model(graph(False), owner) is None


def test_nothing_is_said_of_a_model_with_a_trunk():
    model, said = broken_model(graph(True), {}), []
    assert model is not None
    model.refusals.append(Refusal("nothing here"))
    model.trunk_found = True
    run = model.watch(lambda: None, said.append)
    for _ in range(3):
        run()
    assert said == [] and model.closed


class BreakBefore(TinyTrunk):
    """One graph for the embedding, one for the trunk."""

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        x = x * 1.0
        torch._dynamo.graph_break()
        return super().forward(x, t, c)


class BreakInside(TinyTrunk):
    """The break is in a function of its own, whose graphs come before the one with the trunk."""

    def prefix(self, x: Tensor, t: Tensor, c: Tensor) -> tuple[Streams, Streams]:
        x = x + 0.0
        torch._dynamo.graph_break()
        return super().prefix(x, t, c)


class BreakInBlocks(TinyTrunk):
    """No graph has more than one block."""

    def block(self, index: int, changing: Streams, fixed: Streams) -> Streams:
        result = super().block(index, changing, fixed)
        torch._dynamo.graph_break()
        return result


@pytest.mark.parametrize("cls", [BreakBefore, BreakInside])
def test_the_graph_behind_a_break_is_cached(cls):
    model = cls().eval()
    compiled = torch.compile(model, backend="fxcache", options=OPTIONS)
    with torch.no_grad():
        for step, call in enumerate(loop()):
            with api.context("only", step_index=step):
                assert torch.equal(compiled(*call), model(*call)) == (step == 0)
    assert decisions(model) == ["C.."]


def test_what_comes_out_of_another_graph_tells_no_branch_apart():
    model = BreakBefore().eval()
    compiled = torch.compile(model, backend="fxcache", options=OPTIONS)
    with torch.no_grad(), api.generation():
        for call in loop(4):
            compiled(*call)
            compiled(call[0], call[1], call[2] + 1)  # the other branch, whose text is new in every call
    assert sorted(decisions(model)) == ["C", "C", "C", "C", "C..."]


def test_breaks_in_every_block_are_refused_once():
    model = BreakInBlocks().eval()
    compiled = torch.compile(model, backend="fxcache", options=WARN)
    with refusals() as said, torch.no_grad():
        for call in loop():
            assert torch.equal(compiled(*call), model(*call))
    (sentence,) = said
    assert "graph breaks cut the model into at least " in sentence and "no chained stack of repeated blocks" in sentence
    assert "torch._dynamo.graph_break()" in sentence and f"{__file__}:" in sentence
    assert decisions(model) == []
    strict = torch.compile(BreakInBlocks().eval(), backend="fxcache", options=OPTIONS)
    with torch.no_grad():
        strict(*loop(1)[0])
        with pytest.raises(RefusalError, match="graph breaks cut the model"):
            strict(*loop(1)[0])
