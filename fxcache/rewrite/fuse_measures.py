"""Pass: on a CPU, what the decision measures becomes a submodule, which Inductor compiles to one loop."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._inductor.decomposition import select_decomp_table
from torch.func import functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import free_symbols

from fxcache.kernels import residual_diff_reference, residual_products_by_pairs
from fxcache.regions.dataflow import tensor_of
from fxcache.rewrite.borders import conform_layout, own_memory
from fxcache.rewrite.pin_layouts import settle_layout
from fxcache.rewrite.plan import Plan, facts_of, fake_mode_of

MEASURE = "fxcache_measure"
_FORMULAS: dict[Any, Callable[..., torch.Tensor]] = {
    torch.ops.fxcache.residual_diff.default: residual_diff_reference,
    torch.ops.fxcache.residual_products.default: residual_products_by_pairs,
}


def fuse_measures(gm: GraphModule, _: Plan) -> int:
    """Write out the operators that measure the indicator on a CPU; return their number.

    Before::

        sums = fxcache::residual_diff(h1, h0, reference)

    after::

        sums = invoke_subgraph(fxcache_measure_0, ..., h1, h0, reference)[0]
        fxcache_measure_0(out, inp, reference): d = abs(out - inp - reference);  return (stack(sum(d), ...),)

    Operator by operator a CPU would pass over memory half a dozen times, which is what a reused step of a small model
    spends its time on. Not in the graph itself: there Inductor would fuse the loop with what computes h1, and
    might no longer compute that as it does without a cache.
    """
    made: dict[Any, tuple[str, list[Node]]] = {}
    measures = [node for target in _FORMULAS for node in gm.graph.find_nodes(op="call_function", target=target)]
    fused = [node for node in measures if _is_fixed_on_cpu(node)]
    for node in fused:
        _replace(gm, node, made)
    return len(fused)


def _is_fixed_on_cpu(node: Node) -> bool:
    values = [tensor_of(operand) for operand in node.all_input_nodes]
    return all(
        # a part of a tensor may have a known size, but strides or a place that depend on a length that is not known
        value is not None and value.device.type == "cpu" and not free_symbols(value)
        for value in values
    )


def _replace(gm: GraphModule, node: Node, made: dict[Any, tuple[str, list[Node]]]) -> None:
    graph, read = gm.graph, node.all_input_nodes
    places = {operand: place for place, operand in enumerate(read)}
    told = tuple(places.get(arg, arg) if isinstance(arg, Node) else (arg,) for arg in node.args)
    key = (node.target, told, tuple(map(_kind, read)))
    name, models = made.get(key, (f"{MEASURE}_{len(made)}", []))
    if not models:
        gm.add_submodule(name, _written_out(node, read))
    with graph.inserting_before(node):
        operands = [
            graph.call_function(conform_layout, (operand, models[place]))
            if models
            else graph.call_function(settle_layout, (operand,))
            for place, operand in enumerate(read)
        ]
        for operand, source in zip(operands, read, strict=True):
            operand.meta = facts_of(source)
        call = graph.call_function(torch.ops.higher_order.invoke_subgraph, (graph.get_attr(name), name, *operands))
        call.meta["val"] = (node.meta["val"],)
        result = graph.call_function(operator.getitem, (call, 0))
        result.meta = facts_of(node)
    node.replace_all_uses_with(result)
    graph.erase_node(node)
    made.setdefault(key, (name, operands))


def _written_out(node: Node, read: list[Node]) -> GraphModule:
    """The operator as a graph of ATen operators; what it returns has memory of its own."""
    formula = _FORMULAS[node.target]

    def measure(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(read, values, strict=True))
        return (formula(*(given[arg] if isinstance(arg, Node) else arg for arg in node.args), **node.kwargs),)

    values = [operand.meta["val"] for operand in read]
    with fake_mode_of(values):
        written: GraphModule = make_fx(functionalize(measure), decomposition_table=select_decomp_table())(*values)
    (output,) = written.graph.find_nodes(op="output")
    (result,) = output.args[0]
    with written.graph.inserting_before(output):
        owned = written.graph.call_function(own_memory, (result,))
    owned.meta = facts_of(result)
    output.args = ((owned,),)
    return written


def _kind(node: Node) -> Any:
    value = node.meta["val"]
    return (tuple(value.shape), value.stride(), value.storage_offset(), value.dtype)
