"""Pass: dynamic sizes are read off the first value that has them."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from fxcache.regions.dataflow import depends_on_data, dynamic_sizes, value_of


def early_sizes(gm: GraphModule) -> int:
    """Read every size where it is known first; return the number of reads that were moved.

    Before::

        h1 = block(h0);  n = sym_size(h1, 1);  ...;  view(h3, (n, 4))

    after::

        n = sym_size(h0, 1);  h1 = block(h0);  ...;  view(h3, (n, 4))

    A size that is read off a value in the middle would leave it, and a conditional returns tensors only.  An input that
    holds a size gets the symbol that this has in expressions: branches have no other way to know it.
    """
    first: dict[Any, tuple[Node, int | None]] = {}
    inputs = gm.graph.find_nodes(op="placeholder")
    moved = 0
    for node in list(gm.graph.nodes):
        value = value_of(node)
        if node.target is torch.ops.aten.sym_size.int and isinstance(value, torch.SymInt):
            source, axis = first.get(value.node.expr, (node.args[0], None))
            if source is not node.args[0] and not depends_on_data(value):
                moved += 1
                _read(node, source, axis, inputs[-1])
            continue
        for axis, size in dynamic_sizes(value).items():
            first.setdefault(size, (node, axis))
        if node.op == "placeholder" and isinstance(value, torch.SymInt):
            node.meta["val"] = _under_one_name(value)
            first[value.node.expr] = (node, None)
    return moved


def _under_one_name(size: torch.SymInt) -> torch.SymInt:
    """A size that turned out to equal another one, under the symbol that stands for both now."""
    held = size.node
    if held.expr == held._expr or not held.expr.is_symbol:
        return size
    renamed: torch.SymInt = held.shape_env.create_symintnode(held.expr, hint=held.hint)
    return renamed


def _read(node: Node, source: Node, axis: int | None, last_input: Node) -> None:
    if axis is None:
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)
        return
    node.args = (source, axis)
    (last_input if source.op == "placeholder" else source).append(node)
