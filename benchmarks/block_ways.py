"""Other ways to compile blocks of one structure once, for `benchmarks.compile_time`; fxcache takes none of them.

`share_blocks` leaves a graph in which one submodule is called once per block (`invoke_subgraph`). Here these calls
become something else, and the rest is as it is:

    callee   the submodule is compiled for itself, and a custom operator, opaque to Inductor, calls it from the wrapper
    loop     a row of calls becomes a `while_loop` whose body takes the weights of its turn out of stacked ones
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._guards import TracingContext
from torch._inductor.compile_fx import compile_fx_inner
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from fxcache.inner import compile_through, lower
from fxcache.options import Options
from fxcache.rewrite.borders import conform_layout
from fxcache.rewrite.pin_layouts import settle_layout
from fxcache.rewrite.pipeline import share

WAYS = ("callee", "loop")
_CALL = torch.ops.higher_order.invoke_subgraph
_OPTIONS = {"residual_diff_threshold": 0.0, "share_blocks": True}


def backend(way: str) -> Callable[[GraphModule, Sequence[Any]], Callable[..., Any]]:
    """A backend for `torch.compile(..., dynamic=False)` that compiles the graph in one of the `WAYS`."""
    options = Options.from_mapping(_OPTIONS)

    def compile_graph(gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        def seam(aten: GraphModule, flat: Sequence[Any], **facts: Any) -> Callable[[list[Any]], Any]:
            shared = share(aten, facts["static_input_idxs"], options)
            if shared is None:
                raise ValueError("no two blocks of this graph have one structure")
            stacked = _with_callees(shared) if way == "callee" else _with_loops(shared)
            fakes = [node.meta["val"] for node in shared.graph.find_nodes(op="placeholder")]
            shared.recompile()
            return _stacking(lower(shared, fakes, options, facts, rewritten=True), stacked)

        return compile_through(seam, gm, inputs, options)

    return compile_graph


def _submodules(gm: GraphModule) -> Iterator[tuple[GraphModule, list[Node]]]:
    calls = gm.graph.find_nodes(op="call_function", target=_CALL)
    for name, module in list(gm.named_children()):
        mine = [node for node in calls if node.args[1] == name]
        if mine and isinstance(module, GraphModule):
            yield module, mine


@dataclass
class _Callee:
    run: Callable[[list[Tensor]], Any]
    results: tuple[Tensor, ...]
    """Fake ones."""


_callees: list[_Callee] = []


@torch.library.custom_op("fxcache_ways::call", mutates_args=(), tags=(torch.Tag.needs_exact_strides,))
def _call(callee: int, operands: list[Tensor]) -> list[Tensor]:
    return list(_callees[callee].run(list(operands)))


@_call.register_fake
def _(callee: int, operands: list[Tensor]) -> list[Tensor]:
    return [torch.empty_strided(one.shape, one.stride(), dtype=one.dtype) for one in _callees[callee].results]


def _with_callees(gm: GraphModule) -> list[list[int]]:
    """Put an operator in the place of every call; it needs no inputs stacked."""
    for module, calls in _submodules(gm):
        fakes = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
        with patch.object(TracingContext.get(), "output_strides", None):  # those of the graph around it are wanted
            compiled = compile_fx_inner(module, fakes, is_inference=True, static_input_idxs=())
        _callees.append(_Callee(compiled, calls[0].meta["val"]))
        for node in calls:
            with gm.graph.inserting_before(node):
                made = gm.graph.call_function(
                    torch.ops.fxcache_ways.call.default, (len(_callees) - 1, list(node.args[2:]))
                )
            made.meta = {**node.meta, "val": list(node.meta["val"])}
            node.replace_all_uses_with(made)
            gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()
    return []


@dataclass
class _Row:
    """Calls that follow each other: each takes its streams from the one before."""

    calls: list[Node]
    carried: dict[int, int]
    """By place of an operand: the result of the call before."""
    stacked: list[int]
    """Places of operands that are different inputs of the graph in every call."""
    same: list[int]
    """Places of operands that all calls share."""


def _source(node: Any) -> Any:
    while isinstance(node, Node) and node.target in (settle_layout, conform_layout):
        node = node.args[0]
    return node


def _row(calls: list[Node]) -> _Row:
    operands = [[_source(node) for node in call.args[2:]] for call in calls]
    carried, stacked, same = {}, [], []
    for place, column in enumerate(zip(*operands, strict=True)):
        if len(set(column)) == 1:
            same.append(place)
        elif all(node.op == "placeholder" for node in column):
            stacked.append(place)
        else:
            before = [(node.args[0], node.args[1]) for node in column[1:]]
            if [call for call, _ in before] != calls[:-1] or len({which for _, which in before}) != 1:
                raise ValueError(f"operand {place} of {calls[1]} comes neither from the call before nor from outside")
            carried[place] = before[0][1]
    return _Row(calls, carried, stacked, same)


def _with_loops(gm: GraphModule) -> list[list[int]]:
    """Put a loop in the place of every row of calls; return which inputs are to be stacked for the added ones."""
    graph, stacks = gm.graph, []
    inputs = graph.find_nodes(op="placeholder")
    place = {node: i for i, node in enumerate(inputs)}
    last = inputs[-1]
    for number, (module, calls) in enumerate(_submodules(gm)):
        row = _row(calls)
        added = []
        for operand in row.stacked:
            nodes = [call.args[2 + operand] for call in calls]
            stacks.append([place[node] for node in nodes])
            with graph.inserting_after(last):
                last = graph.placeholder(f"stack_{len(stacks)}")
            value = nodes[0].meta["val"]
            last.meta["val"] = value.new_empty((len(calls), *value.shape))
            added.append(last)
        _insert_loop(gm, module, row, added, number)
    graph.eliminate_dead_code()
    graph.lint()
    return stacks


def _insert_loop(gm: GraphModule, module: GraphModule, row: _Row, stacks: list[Node], number: int) -> None:
    graph, first, last = gm.graph, row.calls[0], row.calls[-1]
    streams = [first.args[2 + place] for place in row.carried]
    shared = [first.args[2 + place] for place in row.same]
    condition, body = (
        _condition(len(row.calls), streams, [*shared, *stacks]),
        _body(module, row, streams, shared, stacks),
    )
    gm.add_submodule(f"loop_condition_{number}", condition)
    gm.add_submodule(f"loop_body_{number}", body)
    with graph.inserting_before(last):
        start = graph.call_function(torch.ops.aten.full.default, ([], 0), {"dtype": torch.int64, "device": "cpu"})
        start.meta["val"] = _counter(streams)
        parts = [graph.get_attr(f"loop_condition_{number}"), graph.get_attr(f"loop_body_{number}")]
        loop = graph.call_function(torch.ops.higher_order.while_loop, (*parts, (start, *streams), (*shared, *stacks)))
        loop.meta["val"] = (start.meta["val"], *(node.meta["val"] for node in streams))
    order = list(row.carried.values())
    for user in list(last.users):
        with graph.inserting_before(last):
            out = graph.call_function(operator.getitem, (loop, 1 + order.index(user.args[1])))
        out.meta = dict(user.meta)
        user.replace_all_uses_with(out)


def _counter(streams: list[Node]) -> Tensor:
    with streams[0].meta["val"].fake_mode:
        return torch.empty((), dtype=torch.int64)


def _placeholders(graph: Graph, nodes: Sequence[Node]) -> list[Node]:
    made = [graph.placeholder("turn")]
    made[0].meta["val"] = _counter(list(nodes))
    for i, node in enumerate(nodes):
        made.append(graph.placeholder(f"operand_{i}"))
        made[-1].meta["val"] = node.meta["val"]
    return made


def _condition(turns: int, streams: list[Node], others: list[Node]) -> GraphModule:
    graph = Graph()
    turn = _placeholders(graph, [*streams, *others])[0]
    more = graph.call_function(torch.ops.aten.lt.Scalar, (turn, turns))
    with turn.meta["val"].fake_mode:
        more.meta["val"] = torch.empty((), dtype=torch.bool)
    graph.output(more)
    return GraphModule(torch.nn.Module(), graph)


def _body(module: GraphModule, row: _Row, streams: list[Node], shared: list[Node], stacks: list[Node]) -> GraphModule:
    graph = Graph()
    turn, *given = _placeholders(graph, [*streams, *shared, *stacks])

    def call(target: Any, *args: Any) -> Node:
        made = graph.call_function(target, args)
        with turn.meta["val"].fake_mode:
            made.meta["val"] = target(*map_arg(args, lambda node: node.meta["val"]))
        return made

    weights = [call(torch.ops.aten.index.Tensor, stack, [turn]) for stack in given[len(streams) + len(shared) :]]
    at = dict(
        zip([*row.carried, *row.same, *row.stacked], [*given[: len(streams) + len(shared)], *weights], strict=True)
    )
    inside: dict[Node, Node] = {}
    results: tuple[Node, ...] = ()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            inside[node] = at[len(inside)]
        elif node.op == "output":
            results = tuple(inside[result] for result in node.args[0])
        else:
            inside[node] = graph.node_copy(node, inside.__getitem__)
    following = call(torch.ops.aten.add.Tensor, turn, 1)
    graph.output((following, *(results[which] for which in row.carried.values())))
    return GraphModule(torch.nn.Module(), graph)


def _stacking(compiled: Callable[[list[Any]], Any], stacks: list[list[int]]) -> Callable[[list[Any]], Any]:
    made: list[Tensor] = []

    def run(flat: list[Any]) -> Any:
        if stacks and not made:
            made.extend(torch.stack([flat[i] for i in places]) for places in stacks)
        flat.extend(made)
        return compiled(flat)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run
