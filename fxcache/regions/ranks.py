"""The process groups that a traced model communicates in."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

COLLECTIVES = ("_c10d_functional", "c10d_functional")
"""Namespaces of the operators that Dynamo makes of collectives, and DTensor of what it redistributes."""


def process_groups(gm: GraphModule) -> tuple[str, ...]:
    """Names of the process groups of all collectives in a graph and in what it calls; () for a model of one process.

    In the order in which they are used, which all ranks have in common: the names are numbers of each rank's own.
    """
    modules = [module for module in gm.modules() if isinstance(module, GraphModule)]
    nodes = [node for module in modules for node in module.graph.nodes if node.op == "call_function"]
    return tuple(dict.fromkeys(group for node in nodes if (group := _group_of(node)) is not None))


def _group_of(node: Node) -> str | None:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace not in COLLECTIVES:
        return None
    for place, argument in enumerate(target._schema.arguments):
        if argument.name == "group_name":
            group = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            # a group itself stands in the graph where one rank compiles for all
            return str(getattr(group, "group_name", group))
    return None
