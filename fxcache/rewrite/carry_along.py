"""Pass: a carry that is summed up of transposed values is summed up once more inside of the branch, on the CPU."""

from __future__ import annotations

import torch
from torch._inductor import config as inductor_config
from torch.fx import GraphModule, Node

from fxcache.regions.dataflow import hint, is_pointwise, is_view, numel_hint, op_name, tensor_of, value_of
from fxcache.rewrite.plan import Plan
from fxcache.rewrite.share_blocks import unmarked

_MOST = 64
"""Longer sums are not repeated."""


def carry_along(gm: GraphModule, plan: Plan) -> int:
    """Move copies of the sums that such operands of the middle are made of into it; return the number of copies.

    Before::

        p = permute(convolution(x));  h1 = add(p, mm);  [middle: norm(h1) ...]

    after::

        p = permute(convolution(x));  h1 = add(p, mm);  [middle: h1_ = add(p, mm);  norm(h1_) ...]

    Inductor computes the sum in one loop with the norm that reads it, and the loop sums up in an order that depends
    on the layout of everything it reads.  Behind a border the norm would read h1 alone, which is stored row by row,
    and differ in the last bits.  Not for units that are decided for themselves: what h1 is made of may lie in another.
    """
    region = plan.region
    if plan.options.inner_backend != "inductor":
        return 0
    members, copies = set(region.middle), list[Node]()
    reads: dict[Node, frozenset[Node]] = {}
    for node in gm.graph.nodes:
        reads[node] = _reads(node, reads)
    for operand in filter(_is_elementwise, region.operands):
        parts = _parts(operand, reads)
        if any(_is_transposed(arg, operand) for node in parts for arg in (node, *node.all_input_nodes)):
            made = _copied(parts, operand.next)
            operand.replace_all_uses_with(made[-1], delete_user_cb=members.__contains__)
            copies += made
    if copies:
        members.update(copies)
        region.middle = [*copies, *region.middle]
        region.operands = [n for n in gm.graph.nodes if n not in members and any(user in members for user in n.users)]
    return len(copies)


def _copied(nodes: list[Node], place: Node) -> list[Node]:
    copies: dict[Node, Node] = {}
    with place.graph.inserting_before(place):
        for node in nodes:
            copies[node] = place.graph.node_copy(node, lambda arg: copies.get(arg, arg))
            copies[node].meta = unmarked(node)
    return list(copies.values())


def _parts(operand: Node, reads: dict[Node, frozenset[Node]]) -> list[Node]:
    """The operand and what it is computed of without being stored, in execution order; empty where that is too much."""
    found, queue = {operand}, [operand]
    while queue:
        for arg in queue.pop().all_input_nodes:
            if arg not in found and (_is_view(arg) or (_is_elementwise(arg) and reads[arg] != {arg})):
                found.add(arg)
                queue.append(arg)
    return [node for node in reads if node in found] if len(found) <= _MOST else []


def _reads(node: Node, reads: dict[Node, frozenset[Node]]) -> frozenset[Node]:
    """What Inductor loads for one element of a value: the value itself where it is stored."""
    below = frozenset[Node]().union(*(reads[arg] for arg in node.all_input_nodes if _has_values(arg)))
    if is_view(node):
        return frozenset({node}) if below <= set(node.all_input_nodes) else below
    stored = len(node.users) > 1 and len(below) > inductor_config.realize_reads_threshold
    return below if _is_elementwise(node) and below and not stored else frozenset({node})


def _has_values(node: Node) -> bool:
    return isinstance(value_of(node), torch.Tensor | tuple | list)


def _is_view(node: Node) -> bool:
    # a part of several is an operand itself: what it is a part of cannot be one
    return is_view(node) and tensor_of(node) is not None and op_name(node) != "getitem"


def _is_elementwise(node: Node) -> bool:
    value = tensor_of(node)
    on_cpu = value is not None and value.device.type == "cpu" and value.dtype == torch.float32
    return on_cpu and is_pointwise(node)


def _is_transposed(node: Node, operand: Node) -> bool:
    """Say whether a value of the operand's size lies in memory in another order than that of its axes.

    Where Inductor computes a value element by element and stores it, it chooses the order, whatever was traced.
    """
    value = tensor_of(node)
    if value is None or numel_hint(node) != numel_hint(operand) or op_name(node) == "expand" or _is_elementwise(node):
        return False
    strides = [hint(stride) for size, stride in zip(value.shape, value.stride(), strict=True) if hint(size) != 1]
    return strides != sorted(strides, reverse=True)
