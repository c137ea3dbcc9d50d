"""Pass: the middle becomes a submodule with one call."""

from __future__ import annotations

import itertools
import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_symbols
from torch.utils._sympy.functions import Max

from fxcache.regions.dataflow import base_of, dynamic_sizes, hint, numel_hint, size_inputs, symbols_read, tensor_of
from fxcache.regions.region import Region
from fxcache.rewrite.plan import Plan, call, facts_of, fake_mode_of

COMPUTE = "fxcache_compute"
_Dimension = tuple[Node, int]
"""A value, and one of its axes."""


def outline_middle(gm: GraphModule, plan: Plan) -> int:
    """Replace the nodes of the middle by one call of a submodule that holds them; return the number of nodes outlined.

    Before::

        b1 = block1(h0, temb);  b2 = block2(b1, temb);  norm(b2)

    after::

        out = fxcache_compute(h0, temb);  b2 = out[0];  norm(b2)

    Outputs are contiguous, start at offset 0 and alias neither an input nor each other, as branches of a conditional
    must. One of a size that might be 0 for all that is known leaves it flat: its strides would depend on that.
    """
    region = plan.region
    members = set(region.middle)
    attributes = [n for n in region.operands if n.op == "get_attr" and isinstance(_attribute(gm, n), torch.nn.Module)]
    operands = [node for node in region.operands if node not in attributes]
    shown = _dimensions(gm.graph, region)
    operands += _sizes(gm.graph, region, operands, shown)
    live_outs = [stream.live_out for stream in region.streams]
    mode = fake_mode_of([value.meta["val"] for value in live_outs])

    with mode:
        vals = tuple(torch.empty(v.shape, dtype=v.dtype, device=v.device) for v in map(_tensor, live_outs))
    shapes = [
        _shape(val, like, shown) if _may_be_empty(val) else None
        for val, like in zip(vals, plan.references, strict=True)
    ]
    crosses_flat = [shape is not None for shape in shapes]
    crossing = tuple(val.view(-1) if is_flat else val for val, is_flat in zip(vals, crosses_flat, strict=True))

    body = Graph()
    inside: dict[Node, Node] = {}
    root = torch.nn.Module()
    for node in operands:
        if node.op == "get_attr" and "val" not in node.meta:
            node.meta["val"] = mode.from_tensor(_attribute(gm, node), static_shapes=True)
        inside[node] = body.placeholder(node.name)
        inside[node].meta = facts_of(node)
    for node in attributes:
        name = str(node.target).replace(".", "_")
        setattr(root, name, _attribute(gm, node))
        inside[node] = body.get_attr(name)
    for node in region.middle:
        inside[node] = body.node_copy(node, inside.__getitem__)
    results = []
    for node, is_flat in zip(live_outs, crosses_flat, strict=True):
        own = is_flat or _needs_copy(node, live_outs, members)
        copied = _contiguous_copy(body, inside[node]) if own else inside[node]
        results.append(flat(body, copied) if is_flat else copied)
    body.output(tuple(results))
    compute = GraphModule(root, body)
    gm.add_submodule(plan.prefix + COMPUTE, compute)

    with gm.graph.inserting_before(region.anchor):
        given = tuple(_lifted(gm.graph, node) if node.op == "get_attr" else node for node in operands)
        plan.compute = gm.graph.call_module(plan.prefix + COMPUTE, given)
        plan.compute.meta["val"] = crossing
        for i, node in enumerate(live_outs):
            out = gm.graph.call_function(operator.getitem, (plan.compute, i))
            out.meta = facts_of(node) | {"val": crossing[i]}
            if (shape := shapes[i]) is not None:
                out = _in_shape(gm, out, shape, vals[i])
            plan.outputs.append(out)
    for node, out in zip(live_outs, plan.outputs, strict=True):
        fresh = out if plan.options.inner_backend == "inductor" else _as_traced(gm, node, out)
        node.replace_all_uses_with(fresh, delete_user_cb=lambda user: user not in members)
    for node in reversed(region.middle):
        gm.graph.erase_node(node)
    for node in attributes:
        if not node.users:
            gm.graph.erase_node(node)
    return len(members)


def _lifted(graph: Graph, constant: Node) -> Node:
    """A copy of a constant: under fake tensors, operators take a constant itself for a tensor that was left real."""
    copied = graph.call_function(torch.ops.aten.lift_fresh_copy.default, (constant,))
    copied.meta = facts_of(constant)
    return copied


def _as_traced(gm: GraphModule, traced: Node, out: Node) -> Node:
    """Give a contiguous output the dense layout of the value it replaces; ``out`` itself where that is contiguous.

    Kernels of eager mode sum in the order of memory, so the suffix would differ in the last bits.  Inductor chooses
    layouts itself.
    """
    value = _tensor(traced)
    strides = [hint(stride) for stride in value.stride()]
    order = sorted(range(value.dim()), key=lambda axis: -strides[axis])
    expected, dense = 1, True
    for axis in reversed(order):
        dense = dense and (hint(value.shape[axis]) == 1 or strides[axis] == expected)
        expected *= hint(value.shape[axis])
    if not dense or order == sorted(order):
        return out
    with gm.graph.inserting_before(out.next):
        moved = call(gm.graph, torch.ops.aten.permute.default, (out, order))
        copied = _contiguous_copy(gm.graph, moved)
        return call(gm.graph, torch.ops.aten.permute.default, (copied, [order.index(i) for i in range(len(order))]))


def flat(graph: Graph, node: Node) -> Node:
    """Give a contiguous value one axis."""
    return call(graph, torch.ops.aten.view.default, (node, [-1]))


def _sizes(graph: Graph, region: Region, operands: list[Node], shown: dict[Any, _Dimension]) -> list[Node]:
    """Dynamic sizes that a branch computes with and cannot read off the shape of an operand.

    They are inputs, or, where a size is made of several that depend on data, read in front of the call.
    """
    read = set().union(*map(symbols_read, operands))
    missing = free_symbols([node.meta.get("val") for node in (*operands, *region.middle)]) - read
    holders = {size: node for size, node in size_inputs(graph).items() if size in missing}
    with graph.inserting_before(region.anchor):
        for symbol in sorted(missing & shown.keys() - holders.keys(), key=str):
            holders[symbol] = call(graph, torch.ops.aten.sym_size.int, shown[symbol])
    return [node for node in holders.values() if node not in operands]


def _may_be_empty(contiguous: torch.Tensor) -> bool:
    """Say whether a stride stands for "the size, but at least 1", which the tracing of a conditional cannot follow."""
    strides: tuple[Any, ...] = contiguous.stride()
    return any(isinstance(stride, torch.SymInt) and stride.node.expr.has(Max) for stride in strides)


def _dimensions(graph: Graph, region: Region) -> dict[Any, _Dimension]:
    """By size: the first value outside the middle and in front of its call that has it, and on which axis."""
    found: dict[Any, _Dimension] = {}
    members = set(region.middle)
    for node in itertools.takewhile(lambda node: node is not region.anchor, graph.nodes):
        if node not in members:
            for axis, size in dynamic_sizes(tensor_of(node)).items():
                found.setdefault(size, (node, axis))
    return found


def _shape(val: torch.Tensor, like: Node | None, shown: dict[Any, _Dimension]) -> list[int | _Dimension] | None:
    """Where the running graph reads the sizes of a value: off one like it, or off any; None if one is nowhere."""
    dynamic = dynamic_sizes(val)
    if like is None and not shown.keys() >= set(dynamic.values()):
        return None
    read = {axis: shown[size] if like is None else (like, axis) for axis, size in dynamic.items()}
    return [read.get(axis, size) for axis, size in enumerate(val.shape)]


def _in_shape(gm: GraphModule, out: Node, shape: list[int | _Dimension], val: torch.Tensor) -> Node:
    """Give a flat value its shape."""
    sizes = [size if isinstance(size, int) else call(gm.graph, torch.ops.aten.sym_size.int, size) for size in shape]
    shaped = gm.graph.call_function(torch.ops.aten.view.default, (out, sizes))
    shaped.meta = dict(out.meta) | {"val": val}
    return shaped


def _attribute(gm: GraphModule, node: Node) -> object:
    value: object = gm
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


def _tensor(node: Node) -> torch.Tensor:
    value = tensor_of(node)
    assert value is not None
    return value


def _needs_copy(node: Node, live_outs: list[Node], members: set[Node]) -> bool:
    value, base = _tensor(node), base_of(node)
    expected, strides = 1, []
    for size in reversed(value.shape):
        strides.append(expected)
        expected *= max(hint(size), 1)
    contiguous = all(
        hint(size) == 1 or hint(stride) == wanted
        for size, stride, wanted in zip(value.shape, value.stride(), reversed(strides), strict=True)
    )
    alone = base in members and not any(base_of(other) is base for other in live_outs if other is not node)
    whole = base is node or numel_hint(base) == numel_hint(node)
    return not (contiguous and alone and whole and hint(value.storage_offset()) == 0)


def _contiguous_copy(graph: Graph, node: Node) -> Node:
    return call(graph, torch.ops.aten.clone.default, (node,), {"memory_format": torch.contiguous_format})
