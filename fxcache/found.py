"""What the passes have found out about a graph, as far as the runtime must know it."""

from __future__ import annotations

from dataclasses import dataclass

import sympy  # type: ignore[import-untyped]
import torch
from torch.fx import GraphModule

from fxcache.options import Options
from fxcache.regions.dataflow import hint, size_inputs
from fxcache.regions.flops import region_flops
from fxcache.rewrite.pipeline import Rewritten
from fxcache.rewrite.plan import StateTensor
from fxcache.runtime.interface import GraphInfo, InputRoles, UnitInfo
from fxcache.runtime.layout import Size, StateLayout


@dataclass(frozen=True)
class Found:
    """Facts about one rewritten graph; equal for equal graphs, and can be pickled."""

    layout: StateLayout
    device: torch.device
    """Where the graph reads its clock."""
    signature: str
    roles: InputRoles
    middle_flops: int
    total_flops: int
    stream_names: tuple[str, ...]
    trunk: str
    units: tuple[UnitInfo, ...]
    sizes: int = 0
    """How many sizes of the state only the running graph knows."""

    def info(self, options: Options, *, is_fragment: bool) -> GraphInfo:
        """Return what the runtime must know of the graph, under the options of this process."""
        return GraphInfo(
            signature=self.signature,
            options=options,
            roles=self.roles,
            middle_flops=self.middle_flops,
            total_flops=self.total_flops,
            stream_names=self.stream_names,
            trunk=self.trunk,
            units=self.units,
            is_fragment=is_fragment,
        )


def found_in(aten: GraphModule, result: Rewritten, roles: InputRoles, options: Options) -> Found:
    """Describe what the passes have made of an ATen graph."""
    regions = [plan.region for plan in result.plans]
    region = regions[0]
    total, *flops = region_flops(aten.graph, *({node.name for node in one.middle} for one in regions))
    units: tuple[UnitInfo, ...] = ()
    if options.prunes:
        units = tuple(UnitInfo(len(one.blocks), work) for one, work in zip(regions, flops, strict=True))
    return Found(
        layout=_layout(aten, result),
        device=result.plan.placeholders["clock"].meta["val"].device,
        signature=result.signature,
        roles=roles,
        middle_flops=sum(flops),
        total_flops=total,
        stream_names=tuple(stream.live_out.name for stream in region.streams),
        trunk=region.trunk.label,
        units=units,
        sizes=len(result.plan.sizes),
    )


def _inputs_of(gm: GraphModule) -> dict[sympy.Symbol, int]:
    """Positions of the graph's inputs that are bare symbols of its dynamic sizes."""
    position = {node: i for i, node in enumerate(gm.graph.find_nodes(op="placeholder"))}
    sizes = size_inputs(gm.graph)
    return {size: position[node] for size, node in sizes.items() if isinstance(size, sympy.Symbol)}


def _expression(size: int | torch.SymInt) -> Size:
    if isinstance(size, int):
        return size
    expr = size.node.expr
    return hint(size) if expr.is_number else expr


def _layout(aten: GraphModule, result: Rewritten) -> StateLayout:
    health = result.plan.placeholders["health"].meta["val"]
    specs = [StateTensor("health", tuple(health.shape), health.dtype, health.device), *result.state]
    inputs = _inputs_of(result.gm)
    # What only the running graph knows comes behind the inputs, in the order in which the graph reports it.
    count = len(aten.graph.find_nodes(op="placeholder"))
    met = {size: sympy.Symbol(f"met_{number}") for number, size in enumerate(result.plan.sizes)}
    inputs |= {symbol: count + number for number, symbol in enumerate(met.values())}
    shapes = tuple(tuple(met.get(str(size)) or _expression(size) for size in spec.shape) for spec in specs)
    used = {symbol for shape in shapes for size in shape if not isinstance(size, int) for symbol in size.free_symbols}
    return StateLayout(
        shapes=shapes,
        dtypes=tuple(spec.dtype for spec in specs),
        devices=tuple(spec.device for spec in specs),
        symbols=tuple((symbol, inputs[symbol]) for symbol in sorted(used, key=str)),
    )
