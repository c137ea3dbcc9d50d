"""From captured graphs to an `Explanation`: the passes run on copies, and their plan is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from fxcache.errors import Refusal
from fxcache.explain.capture import Capture, Captured
from fxcache.explain.report import Explanation, GraphNote, RegionFlops, StreamNote
from fxcache.intake import roles_of
from fxcache.options import Options
from fxcache.regions.dataflow import hint, tensor_of
from fxcache.regions.flops import node_flops, uncounted
from fxcache.regions.region import Region
from fxcache.rewrite.pipeline import Rewritten, rewrite
from fxcache.rewrite.plan import Plan, StateTensor
from fxcache.runtime.interface import InputRoles

_ROLES = ("latents", "timestep", "conditioning", "other")


def describe(model: str, found: Capture, options: Options) -> Explanation:
    """Describe what the backend would do with the graphs of one call."""
    results = [_result(graph, options) for graph in found.graphs]
    flops = [_flops_of(graph.aten) for graph in found.graphs]
    totals = [sum(by_name.values()) for by_name in flops]
    cached = [i for i, result in enumerate(results) if isinstance(result, Rewritten)]
    chosen = max(cached or range(len(results)), key=totals.__getitem__, default=None)
    notes = tuple(
        GraphNote(
            operators=sum(node.op == "call_function" for node in graph.aten.graph.nodes),
            flops=total,
            cached=i in cached,
            refusal=result if isinstance(result, Refusal) else None,
            ends=graph.ends,
        )
        for i, (graph, result, total) in enumerate(zip(found.graphs, results, totals, strict=True))
    )
    common: dict[str, Any] = {"model": model, "graphs": notes, "broken": found.broken}
    if chosen is None:
        return Explanation(refusal=Refusal("the call computes nothing that can be traced"), **common)
    graph, result = found.graphs[chosen], results[chosen]
    common["inputs"] = _input_names(roles_of(graph.dynamo, graph.inputs, graph.aten, graph.static))
    if isinstance(result, Refusal):
        if found.broken is not None:
            result = Refusal(f"{result.reason}; the call breaks into {len(notes)} graphs: {found.broken}", result.nodes)
        return Explanation(refusal=result, total_flops=sum(totals), **common)
    regions, state = [plan.region for plan in result.plans], result.state
    region = regions[0]
    health = result.plan.placeholders["health"].meta["val"]
    outside = sum(totals) - totals[chosen]
    return Explanation(
        trunk=region.trunk.label,
        blocks=tuple(block.label for block in region.trunk.blocks),
        first_blocks=region.first_blocks,
        last_blocks=regions[-1].last_blocks,
        units=_units(regions) if options.prunes else (),
        side_blocks=tuple(dict.fromkeys(block.label for block in region.trunk.side_blocks)),
        streams=tuple(note for plan in result.plans for note in _streams(plan)),
        hoisted=tuple(dict.fromkeys(text for one in regions for text in _hoisted(one))),
        indicator=_indicator(result.plan),
        flops=_region_flops(graph.aten, regions, flops[chosen], outside),
        total_flops=sum(totals),
        uncounted=uncounted(graph.aten.graph),
        state_bytes=sum(map(_bytes, state)) + health.numel() * health.dtype.itemsize,
        **common,
    )


def _result(graph: Captured, options: Options) -> Rewritten | Refusal:
    if not options.can_reuse:
        return Refusal(
            "the options never reuse a step: the threshold must be above 0 and the limits of cached steps not 0"
        )
    return rewrite(graph.aten, graph.static, options)


def _flops_of(aten: GraphModule) -> dict[str, int]:
    return {node.name: node_flops(node) for node in aten.graph.nodes if node.op == "call_function"}


def _units(regions: Sequence[Region]) -> tuple[tuple[str, ...], ...]:
    """Labels of the blocks that are decided together, per unit."""
    blocks = [block.label for block in regions[0].trunk.blocks]
    return tuple(tuple(blocks[i] for i in one.blocks) for one in regions)


def _region_flops(aten: GraphModule, regions: Sequence[Region], flops: dict[str, int], outside: int) -> RegionFlops:
    """Work by region; what moves in front of the branch counts to the prefix, other graphs to ``outside``."""
    region = regions[0]
    names = [node.name for node in aten.graph.nodes]
    inside = {node.name for one in regions for node in one.middle}
    exempt = _exempt(regions)
    last_inside = max(i for i, name in enumerate(names) if name in inside)
    sums = dict.fromkeys(("prefix", "first", "middle", "last", "suffix"), 0)
    for position, name in enumerate(names):
        if name in inside:
            part = "middle"
        elif position > last_inside:
            part = "last" if region.last_blocks and position < region.trunk.blocks[-1].end else "suffix"
        elif region.trunk.blocks[0].start <= position < region.front or name in exempt:
            part = "first"
        else:
            part = "prefix"
        sums[part] += flops.get(name, 0)
    return RegionFlops(**sums, outside=outside)


def _exempt(regions: Sequence[Region]) -> set[str]:
    """Nodes of blocks between the units, which always run."""
    blocks = regions[0].trunk.blocks
    taken = {i for one in regions for i in one.blocks}
    between = range(regions[0].blocks.start, regions[-1].blocks.stop)
    return {node.name for i in between if i not in taken for node in blocks[i].nodes}


def _indicator(plan: Plan) -> StreamNote | None:
    if plan.reference is None or plan.indicator_out is None:
        return None
    kind = "raw" if plan.indicator_in is None else "residual"
    return _stream(plan.reference.spec, plan.indicator_out.name, kind)


def _streams(plan: Plan) -> tuple[StreamNote, ...]:
    return tuple(
        _stream(history.spec, stream.live_out.name, "value" if reference is None else "residual")
        for stream, reference, history in zip(plan.region.streams, plan.bases, plan.caches, strict=True)
    )


def _stream(spec: StateTensor, name: str, kind: str) -> StreamNote:
    entries, *shape = spec.shape
    return StreamNote(name, _shape_text(shape), _dtype_text(spec.dtype), kind, _bytes(spec), hint(entries))


def _hoisted(region: Region) -> tuple[str, ...]:
    """Hoisted values that something else than hoisted nodes reads."""
    moved = set(region.hoisted)
    ends = [node for node in region.hoisted if not node.users or any(user not in moved for user in node.users)]
    return tuple(map(_value_text, ends))


def _value_text(node: Node) -> str:
    value = tensor_of(node)
    return node.name if value is None else f"{node.name} {_shape_text(value.shape)} {_dtype_text(value.dtype)}"


def _shape_text(shape: Sequence[int | torch.SymInt]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _dtype_text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bytes(spec: StateTensor) -> int:
    count = spec.dtype.itemsize
    for size in spec.shape:
        count *= hint(size)
    return count


def _input_names(roles: InputRoles) -> dict[str, tuple[str, ...]]:
    return {role: tuple(dict.fromkeys(roles.names[i] for i in getattr(roles, role))) for role in _ROLES}
