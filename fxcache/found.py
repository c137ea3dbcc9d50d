"""What the passes have found out about a graph, as far as the runtime must know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch.fx import GraphModule

from fxcache.options import Options
from fxcache.regions.dataflow import hint
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
    )


def unbacked_state(aten: GraphModule, result: Rewritten) -> tuple[str, ...]:
    """Name the state tensors whose size is not known before the call."""
    inputs = _inputs_of(aten)
    return tuple(spec.name for spec in result.state if not _symbols(spec) <= inputs.keys())


def _inputs_of(aten: GraphModule) -> dict[sympy.Symbol, int]:
    """Positions of the graph's inputs that are bare symbols of its dynamic sizes."""
    found: dict[sympy.Symbol, int] = {}
    for i, node in enumerate(n for n in aten.graph.nodes if n.op == "placeholder"):
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt) and isinstance(value.node.expr, sympy.Symbol):
            found.setdefault(value.node.expr, i)
    return found


def _expression(size: int | torch.SymInt) -> Size:
    if isinstance(size, int):
        return size
    expr = size.node.expr
    return hint(size) if expr.is_number else expr


def _symbols(spec: StateTensor) -> set[Any]:
    return {
        symbol for size in map(_expression, spec.shape) if not isinstance(size, int) for symbol in size.free_symbols
    }


def _layout(aten: GraphModule, result: Rewritten) -> StateLayout:
    health = result.plan.placeholders["health"].meta["val"]
    specs = [StateTensor("health", tuple(health.shape), health.dtype, health.device), *result.state]
    inputs = _inputs_of(aten)
    used = sorted(set().union(*map(_symbols, specs)), key=str)
    return StateLayout(
        shapes=tuple(tuple(map(_expression, spec.shape)) for spec in specs),
        dtypes=tuple(spec.dtype for spec in specs),
        devices=tuple(spec.device for spec in specs),
        symbols=tuple((symbol, inputs[symbol]) for symbol in used),
    )
