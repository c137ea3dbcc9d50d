"""Discovery: from an ATen graph to the region that may be skipped, or a refusal with its reason."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from fxcache.errors import Refusal
from fxcache.options import Options
from fxcache.regions.dataflow import Flow, is_heavy, op_name
from fxcache.regions.region import Region, cut_region
from fxcache.regions.trunk import find_trunk


def discover(graph: Graph, parameters: Collection[Node], options: Options) -> Region | Refusal:
    """Find the trunk, cut its middle out and describe it.

    ``parameters`` are the placeholders that hold weights and buffers. Raises OptionError when explicit
    ``Fn_compute_blocks`` and ``Bn_compute_blocks`` leave no block between them.
    """
    flow = Flow(graph)
    trunk = find_trunk(graph, flow, parameters, options.trunk)
    if isinstance(trunk, Refusal):
        return trunk
    first, last = options.resolve_blocks(len(trunk.blocks))
    return cut_region(graph, flow, trunk, first, last, parameters)


def signature(regions: Sequence[Region]) -> str:
    """Hash of the trunk's structure: which blocks run, with which heavy operators, and what is cached where.

    Sizes are left out, so the static and the dynamic graph of one model agree and may share state; a graph in which
    blocks are skipped, attention is replaced, or a number in it (the scale of an adapter) is another one differs.
    """
    cuts = ";".join(f"F{region.first_blocks}B{region.last_blocks}" for region in regions)
    trunk = regions[0].trunk
    parts = [f"{trunk.label}|{cuts}"]
    for block in trunk.blocks:
        parts.append(block.label + ":" + ",".join(op_name(node) for node in block.nodes if is_heavy(node)))
    for region in regions:
        parts.append(",".join("residual" if stream.reference is not None else "value" for stream in region.streams))
    parts.extend(_numbers(trunk.blocks[0].nodes[0].graph))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _numbers(graph: Graph) -> list[str]:
    """Floating point numbers written into a graph, in order: what else the weights are multiplied with."""
    found: list[str] = []
    for node in graph.nodes:
        pytree.tree_map_only(float, lambda number: found.append(repr(number)), (node.args, node.kwargs))
    return found
