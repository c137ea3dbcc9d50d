"""Several parts of one trunk, each of which may be skipped by itself: what `method="dbprune"` needs."""

from __future__ import annotations

from collections.abc import Collection

from torch.fx import Graph, Node

from fxcache.errors import Refusal
from fxcache.options import Options
from fxcache.regions.dataflow import Flow
from fxcache.regions.region import Region, cut_region
from fxcache.regions.trunk import find_trunk


def discover_units(graph: Graph, parameters: Collection[Node], options: Options) -> list[Region] | Refusal:
    """Find the trunk and cut out every unit of blocks that may be pruned, in execution order.

    A unit is a run of `prune_group` blocks, or fewer where an exempt block ends it. Blocks that cannot be cut out are
    exempt too; if that is all of them, the first reason is the refusal.
    """
    flow = Flow(graph)
    trunk = find_trunk(graph, flow, parameters, options.trunk)
    if isinstance(trunk, Refusal):
        return trunk
    length = len(trunk.blocks)
    regions: list[Region] = []
    refusals: list[Refusal] = []
    for start, stop in options.resolve_units(length):
        region = cut_region(graph, flow, trunk, start, length - stop, parameters, one_of_many=True)
        if isinstance(region, Refusal):
            refusals.append(region)
        else:
            regions.append(region)
    return regions or refusals[0]
