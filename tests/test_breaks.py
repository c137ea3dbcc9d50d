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
        for step, call in enumerate(loop(4)):
            compiled(*call)
            compiled(call[0], call[1], call[2] + 1)  # the other branch, whose text is made anew in every call
            compiled(call[0], call[1], call[2] + 2 + step)  # one that is another in every call
    assert sorted(decisions(model)) == ["C", "C", "C", "C", "C...", "C..."]


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


class Mixed(TinyTrunk):
    """Another text behind the break than in front of it, and a switch that only counts in front of it."""

    def forward(self, x: Tensor, t: Tensor, c: Tensor, strong: bool = False) -> Tensor:
        x, c = (4 * x if strong else x), c * 1.0
        torch._dynamo.graph_break()
        return super().forward(x, t, c)


@pytest.mark.parametrize("differ", ["text", "switch", "nothing"])
def test_behind_a_break_branches_are_those_of_the_arguments_of_the_model(differ):
    def run(*branches: dict[str, Any]) -> tuple[list[list[Tensor]], list[str]]:
        torch.manual_seed(0)
        model = Mixed().eval()
        api.enable_cache(model, **OPTIONS)
        outs: list[list[Tensor]] = [[] for _ in branches]
        with torch.no_grad(), api.generation():
            for call in loop(4):
                for out, branch in zip(outs, branches, strict=True):
                    out.append(model(*call[:2], **{"c": call[2], **branch}))
        return outs, decisions(model)

    text = torch.randn(loop()[0][2].shape, generator=torch.Generator().manual_seed(9))
    other: dict[str, Any] = {"text": {"c": text}, "switch": {"strong": True}, "nothing": {}}[differ]
    outs, words = run({}, other)
    if differ == "nothing":  # the same call once more, which is no step
        assert words == ["C..."] and all(map(torch.equal, *outs)) is False
        return
    assert words == ["C..."] * 2
    for out, branch in zip(outs, ({}, other), strict=True):
        assert all(map(torch.equal, out, run(branch)[0][0]))


class Twice(BreakInBlocks):
    """A function in front of the blocks is one graph that runs twice in a call."""

    def prefix(self, x: Tensor, t: Tensor, c: Tensor) -> tuple[Streams, Streams]:
        return super().prefix(halved(halved(x)), t, c)


def halved(x: Tensor) -> Tensor:
    torch._dynamo.graph_break()
    return x / 2


def test_a_graph_that_runs_twice_in_one_call_is_not_another_call():
    class Whole(TinyTrunk):
        def prefix(self, x: Tensor, t: Tensor, c: Tensor) -> tuple[Streams, Streams]:
            return super().prefix(halved(halved(x)), t, c)

    model = api.enable_cache(Whole().eval(), **OPTIONS)
    with torch.no_grad(), api.generation():  # it would raise
        for call in loop(4):
            model(*call)
    assert decisions(model) == ["C..."]
    broken = api.enable_cache(Twice().eval(), **WARN)
    with refusals() as said, torch.no_grad():
        for call in [*loop(3), *loop(2, length=6), *loop(2, length=7)]:
            broken(*call)
    assert len(said) == 1, "once, also for other sizes"


class Choosing(TinyTrunk):
    """Every block looks at its tokens, so Dynamo gives the loop over the blocks up."""

    def block(self, index: int, changing: Streams, fixed: Streams) -> Streams:
        if changing[0].sum() > 1e9:
            return changing
        return super().block(index, changing, fixed)


class Counting(TinyTrunk):
    """Every block reads a number off the time, which is no reason to give up."""

    def block(self, index: int, changing: Streams, fixed: Streams) -> Streams:
        text, time = fixed
        return super().block(index, changing, (text, time * time.isfinite().all().item()))


@pytest.mark.parametrize("enabled", [False, True])
def test_a_loop_that_dynamo_gives_up_is_refused_with_the_line_at_fault(enabled):
    model = Choosing().eval()
    compiled = api.enable_cache(model, **WARN) if enabled else torch.compile(model, backend="fxcache", options=WARN)
    with refusals() as said, torch.no_grad():
        for call in loop():
            compiled(*call)
    (sentence,) = said
    line = Choosing.block.__code__.co_firstlineno + 1
    assert f"at {__file__}:{line} (if changing[0].sum() > 1e9:)" in sentence
    assert "enable_cache" not in sentence


def test_where_enable_cache_avoids_the_break_the_refusal_says_so():
    model = Counting().eval()
    compiled = torch.compile(model, backend="fxcache", options=WARN)
    with refusals() as said, torch.no_grad():
        for call in loop():
            compiled(*call)
    (sentence,) = said
    assert (
        sentence.endswith("; fxcache.enable_cache avoids breaks of this kind, after torch._dynamo.reset()")
        and decisions(model) == []
    )
    torch._dynamo.reset()  # it knows the function as one that it has given up
    api.enable_cache(model, **OPTIONS)
    with torch.no_grad(), api.generation():
        for call in loop():
            model(*call)
    assert decisions(model) == ["C.."]
