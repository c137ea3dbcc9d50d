"""Floating point operations of a graph, counted on its fake values without running anything."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from fxcache.regions.dataflow import LAYERS, hint, is_heavy, op_name, shape_hint


def node_flops(node: Node) -> int:
    """Operations of one node; 0 for everything but matrix products, convolutions and attention."""
    if op_name(node).startswith(("_scaled_dot_product", "_flash_attention", "flex_attention")):
        # as if no mask left anything out
        shapes = [shape_hint(arg) for arg in node.args[:3] if isinstance(arg, Node)]
        return _attention_flops(*shapes) if len(shapes) == 3 and all(shapes) else 0
    packet = getattr(node.target, "_overloadpacket", None)
    if packet is None:
        return 0
    if op_name(node) in LAYERS:
        return _layer_flops(node)
    count = flop_registry.get(packet)
    if count is None:
        return 0
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
    args, kwargs = tree_map(_hinted, (args, kwargs))
    return int(count(*args, **kwargs, out_val=_hinted(node.meta.get("val"))))


def region_flops(graph: Graph, *parts: Collection[str]) -> tuple[int, ...]:
    """Operations of the whole graph, and of the nodes named in each part."""
    flops = {node.name: node_flops(node) for node in graph.nodes if node.op == "call_function"}
    return sum(flops.values()), *(sum(flops.get(name, 0) for name in part) for part in parts)


def uncounted(graph: Graph) -> tuple[str, ...]:
    """Names of the heavy operators whose work nobody has told the registry of flops."""
    heavy = [node for node in graph.nodes if is_heavy(node)]
    targets = [node.target for node in heavy if not node_flops(node) and isinstance(node.target, torch._ops.OpOverload)]
    return tuple(dict.fromkeys(f"{target.namespace}.{target._opname}" for target in targets))


def _attention_flops(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]) -> int:
    # that of torch refuses grouped queries before 2.12
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _layer_flops(node: Node) -> int:
    batch, length, width = shape_hint(node.args[0])  # type: ignore[arg-type]
    weights = [shape_hint(arg) for arg in node.args[3:18] if isinstance(arg, Node)]
    products = sum(math.prod(shape) for shape in weights if len(shape) == 2)
    return 2 * batch * length * (products + 2 * length * width)


def _hinted(value: Any) -> Any:
    """Replace a fake tensor by one on the meta device with the traced sizes, so that counting adds no guard."""
    if isinstance(value, torch.Tensor):
        return torch.empty([hint(size) for size in value.shape], dtype=value.dtype, device="meta")
    return hint(value) if isinstance(value, torch.SymInt) else value
