"""Graphs that Dynamo makes of a model with and without tracing blocks once, and what may not differ between them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch._dynamo.guards
from torch import fx, nn

import fxcache.backend  # noqa: F401  # which stands before Dynamo
from fxcache.intake import source_name
from fxcache.trace_once import hook


@dataclass
class Seen:
    """What Dynamo has handed over while a model was compiled."""

    graphs: list[fx.GraphModule] = field(default_factory=list)
    guards: list[set[tuple[str, str, str]]] = field(default_factory=list)
    reused: list[int] = field(default_factory=list)
    """Calls of blocks that were copied, per graph."""
    names: dict[str, str] = field(default_factory=dict)
    """Of the parts of the model, by their `id`."""


def keep(seen: Seen) -> Callable[..., Any]:
    """A backend that keeps the graphs and runs them as they are."""

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
        seen.graphs.append(gm.__copy__())
        return gm

    return backend


@contextmanager
def watched(seen: Seen, *, once: bool) -> Iterator[Callable[..., Any]]:
    """A backend of the graphs that are traced inside, with blocks traced once or all of them."""
    backend = keep(seen)
    patch = pytest.MonkeyPatch()
    original = torch._dynamo.guards.CheckFunctionManager.__init__

    def guarded(manager: Any, code: Any, output: Any, *args: Any, **kwargs: Any) -> None:
        seen.guards.append({_guard(guard) for guard in output.guards})
        notes = getattr(output, hook._NOTES, None)
        seen.reused.append(0 if notes is None else notes.reused)
        original(manager, code, output, *args, **kwargs)

    patch.setattr(torch._dynamo.guards.CheckFunctionManager, "__init__", guarded)
    patch.setattr(hook, "_backends", [backend] if once else [])
    try:
        yield backend
    finally:
        patch.undo()


def _guard(guard: Any) -> tuple[str, str, str]:
    given = getattr(guard.create_fn, "keywords", {})
    what = {name: value for name, value in given.items() if name not in ("value", "source_b", "recompile_hint")}
    # names of tables that Dynamo numbers through the life of the process
    return re.sub(r"___\d+", "___N", guard.name), guard.inner_create_fn().__name__, str(what)


def trace(
    module: nn.Module, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]], *, once: bool, **arguments: Any
) -> tuple[Seen, list[Any]]:
    """Compile a model, make the calls, and return what was seen and what they gave."""
    seen = Seen()
    seen.names = {str(id(part)): name for name, part in module.named_modules(remove_duplicate=False)}
    torch._dynamo.reset()
    with watched(seen, once=once) as backend, torch.no_grad():
        compiled = torch.compile(module, backend=backend, **arguments)
        outputs = [compiled(*args, **kwargs) for args, kwargs in calls]
    torch._dynamo.reset()
    return seen, outputs


def assert_same(once: Seen, whole: Seen) -> None:
    """Compare names, operators, arguments, inputs, example values, notes about modules; and that no guard is missing.

    But for those on an object being the same as another: a copied block has guards on what was read of it instead.
    """
    assert len(once.graphs) == len(whole.graphs)
    for copied, traced in zip(once.graphs, whole.graphs, strict=True):
        _assert_same_graph(copied, traced, once.names, whole.names)
    for less, more in zip(once.guards, whole.guards, strict=True):
        missing = {guard for guard in more - less if guard[1] != "DUPLICATE_INPUT"}
        assert not missing, sorted(missing)[:5]


def _assert_same_graph(
    copied: fx.GraphModule, traced: fx.GraphModule, names: dict[str, str], other_names: dict[str, str]
) -> None:
    there: dict[fx.Node, fx.Node] = {}
    copies, nodes = list(copied.graph.nodes), list(traced.graph.nodes)
    assert len(copies) == len(nodes)
    for copy, node in zip(copies, nodes, strict=True):
        assert (copy.op, _target(copy)) == (node.op, _target(node)), (copy.format_node(), node.format_node())
        assert source_name(copy) == source_name(node)
        wanted = fx.map_arg((node.args, node.kwargs), there.__getitem__)
        assert repr((copy.args, copy.kwargs)) == repr(wanted), (copy.format_node(), node.format_node())
        assert stack_of(copy, names) == stack_of(node, other_names), copy.format_node()
        assert copy.name == node.name
        assert copy.stack_trace == node.stack_trace
        assert _example(copy) == _example(node), copy.format_node()
        there[node] = copy


def _target(node: fx.Node) -> Any:
    # of numpy's functions there is a wrapper for every trace
    return getattr(node.target, "__name__", node.target)


def stack_of(node: fx.Node, names: dict[str, str]) -> list[Any]:
    """Modules that a node comes from, by name, with the calls that it was made in."""
    found = []
    for key, value in (node.meta.get("nn_module_stack") or {}).items():
        whose, at, which = key.partition("@")
        found.append((names.get(whose, whose), at, which, value))
    return found


def _example(node: fx.Node) -> Any:
    value = node.meta.get("example_value")
    if not isinstance(value, torch.Tensor):
        return type(value)
    return (value.dtype, value.device, tuple(map(str, value.shape)), tuple(map(str, value.stride())))
