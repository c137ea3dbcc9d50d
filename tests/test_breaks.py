"""Which graphs belong to one model, and when its refusal is said."""

from __future__ import annotations

import traceback
from types import SimpleNamespace
from typing import Any

import torch

from fxcache.breaks import broken_model
from fxcache.errors import Refusal


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
