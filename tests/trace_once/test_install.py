"""Where blocks are traced once: for this backend, in versions of torch that were tested, unless an option says no."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.output_graph import OutputGraph

import fxcache
from fxcache import trace_once
from fxcache.options import Options
from fxcache.trace_once import hook
from tests.trace_once.stacks import LAYERS, Model, x


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many calls were copied, per graph."""
    found: list[int] = []
    original = OutputGraph.compile_and_call_fx_graph

    def compiling(output: Any, *args: Any, **kwargs: Any) -> Any:
        notes = getattr(output, hook._NOTES, None)
        found.append(0 if notes is None else notes.reused)
        return original(output, *args, **kwargs)

    monkeypatch.setattr(OutputGraph, "compile_and_call_fx_graph", compiling)
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


def run(**options: Any) -> None:
    model = Model()
    with torch.no_grad():
        wanted = model(x())
        compiled = torch.compile(model, backend="fxcache", options={"inner_backend": "eager", **options})
        assert torch.equal(compiled(x()), wanted)


def test_for_this_backend(copies: list[int]) -> None:
    run()
    assert copies == [LAYERS - 1]


def test_also_where_nothing_is_cached(copies: list[int]) -> None:
    run(residual_diff_threshold=0.0)
    assert copies == [LAYERS - 1]


def test_after_enable_cache(copies: list[int]) -> None:
    model = Model()
    fxcache.enable_cache(model, inner_backend="eager")
    with torch.no_grad():
        model(x())
    assert copies == [LAYERS - 1]


def test_not_if_an_option_says_no(copies: list[int]) -> None:
    run(trace_once=False)
    assert copies == [0]


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_not_for_other_backends(copies: list[int], backend: str) -> None:
    with torch.no_grad():
        torch.compile(Model(), backend=backend)(x())
    assert copies == [0]


def test_not_for_gradients(copies: list[int]) -> None:
    with pytest.warns(fxcache.RefusalWarning, match="gradients are needed"):
        torch.compile(Model(), backend="fxcache", options={"inner_backend": "eager"})(x())
    assert copies == [0]


def test_not_in_other_versions_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend() -> None: ...

    monkeypatch.setattr(torch, "__version__", "2.99.0+cpu")
    trace_once.install(backend)
    assert backend not in hook._backends
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    trace_once.install(backend)
    assert backend in hook._backends
    hook._backends.remove(backend)


def test_the_option_shapes_no_graph() -> None:
    assert Options(trace_once=False).fingerprint() == Options().fingerprint()
