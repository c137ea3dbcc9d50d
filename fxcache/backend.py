"""The ``torch.compile`` backend: the whole way of one graph, in order.

torch.compile(model, backend="fxcache", options={"Fn_compute_blocks": 1, "residual_diff_threshold": 0.12})
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch.fx import GraphModule

from fxcache.breaks import BrokenModel, broken_model, cut_by_hand
from fxcache.calibrators import CALIBRATORS
from fxcache.errors import OptionError, Refusal, RefusalError, RefusalWarning
from fxcache.inner import compile_through, lower
from fxcache.intake import roles_of
from fxcache.options import Options
from fxcache.regions.dataflow import hint
from fxcache.regions.flops import region_flops
from fxcache.rewrite.pipeline import Rewritten, rewrite
from fxcache.rewrite.plan import StateTensor
from fxcache.runtime import signals
from fxcache.runtime.attribution import attribution
from fxcache.runtime.compiled import CompiledCall, Link, with_state
from fxcache.runtime.interface import GraphInfo, UnitInfo
from fxcache.runtime.layout import Size, StateLayout

# A pipeline opens its progress bar before it first calls the model: naming the backend must be enough to see it.
signals.install()

# The graphs name their calibrator, also those that Inductor takes from its cache.
assert CALIBRATORS


def fxcache(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile one graph of Dynamo; called by ``torch.compile(..., backend="fxcache")``.

    ``options`` are the fields of `fxcache.Options`.  ``mode`` is a mode of ``torch.compile`` ("max-autotune", ...),
    handed to Inductor.  A graph without a usable trunk is compiled unmodified, with one `RefusalWarning`.  Raises
    OptionError for a wrong option, and RefusalError for such a graph under ``on_refusal="raise"``.
    """
    parsed = Options.from_mapping(options or {})
    if mode is not None:
        parsed = parsed.replace(inner_options={"mode": mode, **parsed.inner_options})
    signals.install()
    broken = broken_model(gm, options)
    compilation = _Compilation(gm, example_inputs, parsed, broken)
    compiled = compile_through(compilation.seam, gm, example_inputs, parsed)
    if compilation.info is None:
        refused = compilation.refusal is not None
        return broken.watch(compiled, partial(_say, parsed)) if broken is not None and refused else compiled
    if broken is not None:
        broken.trunk_found = True
    return CompiledCall(compiled, compilation.info, compilation.link, attribution)


class _Compilation:
    """One call of the backend: what the seam needs to know of Dynamo's graph, and what it found out."""

    def __init__(self, gm: GraphModule, inputs: Sequence[Any], options: Options, broken: BrokenModel | None) -> None:
        self._dynamo = gm.__copy__()
        self._inputs = tuple(inputs)
        self._options = options
        reason = getattr(gm, "compile_subgraph_reason", None)
        self._is_fragment = bool(getattr(reason, "graph_break", False))
        self.link = Link()
        self._broken = broken
        self.info: GraphInfo | None = None
        self.refusal: Refusal | None = None

    def seam(self, aten: GraphModule, inputs: Sequence[Any], **facts: Any) -> Callable[[list[Any]], Any]:
        """Rewrite the ATen graph if that is possible and wanted, and compile it."""
        result = self._rewritten(aten, facts)
        if isinstance(result, Refusal):
            self._refuse(result)
        if not isinstance(result, Rewritten):
            return lower(aten, inputs, self._options, facts, rewritten=False)
        added = [node.meta["val"] for node in result.plan.placeholders.values()]
        compiled = lower(result.gm, [*inputs, *added], self._options, facts, rewritten=True)
        layout = _layout(aten, result)
        self.info = self._describe(aten, result, facts)
        device = result.plan.placeholders["clock"].meta["val"].device
        return with_state(compiled, self.link, layout.resolver(), device, len(self.info.units))

    def _rewritten(self, aten: GraphModule, facts: Mapping[str, Any]) -> Rewritten | Refusal | None:
        if not self._options.can_reuse:
            return None
        if not facts.get("is_inference", False):
            return Refusal("gradients are needed: caching is for inference, call the model under torch.no_grad()")
        try:
            result = rewrite(aten, facts.get("static_input_idxs", ()), self._options)
        except OptionError as error:
            if not self._is_fragment:
                raise
            # A short stack in front of a graph break is not the trunk that the options speak of.
            return Refusal(str(error))
        if isinstance(result, Rewritten):
            unbacked = [spec.name for spec in result.state if not _symbols(spec) <= _inputs_of(aten).keys()]
            if unbacked:
                return Refusal("the size of a cached value depends on data, not on sizes of inputs", tuple(unbacked))
        return result

    def _refuse(self, refusal: Refusal) -> None:
        if self.refusal is not None:
            return  # the backward graph, after the forward one
        self.refusal = refusal
        if self._broken is None:
            _say(self._options, refusal)
        else:  # the trunk may be in another graph of the model
            self._broken.refusals.append(refusal)

    def _describe(self, aten: GraphModule, result: Rewritten, facts: Mapping[str, Any]) -> GraphInfo:
        regions = [plan.region for plan in result.plans]
        region = regions[0]
        total, *flops = region_flops(aten.graph, *({node.name for node in one.middle} for one in regions))
        units: tuple[UnitInfo, ...] = ()
        if self._options.prunes:
            units = tuple(UnitInfo(len(one.blocks), work) for one, work in zip(regions, flops, strict=True))
        return GraphInfo(
            signature=result.signature,
            options=self._options,
            roles=roles_of(self._dynamo, self._inputs, aten, facts.get("static_input_idxs", ())),
            middle_flops=sum(flops),
            total_flops=total,
            stream_names=tuple(stream.live_out.name for stream in region.streams),
            trunk=region.trunk.label,
            units=units,
            is_fragment=self._broken is not None,
        )


def _say(options: Options, refusal: Refusal) -> None:
    refusal, new = cut_by_hand(refusal)
    if options.on_refusal == "raise":
        raise RefusalError(refusal)
    if new:
        warnings.warn(RefusalWarning(f"fxcache leaves a graph unmodified: {refusal}"), stacklevel=2)


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
