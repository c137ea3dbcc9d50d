"""Run a model uncached and measure, step by step, how what enters its trunk moves, what leaves it, and what it adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcache.errors import Refusal
from fxcache.inner import compile_through, lower
from fxcache.intake import roles_of
from fxcache.kernels import residual_diff_reference
from fxcache.options import Options
from fxcache.regions.dataflow import is_float_tensor, numel_hint
from fxcache.regions.discover import discover, signature
from fxcache.rewrite.gather_references import gather_references
from fxcache.rewrite.pipeline import copy_graph
from fxcache.rewrite.plan import Plan
from fxcache.rewrite.thread_state import main_stream
from fxcache.runtime.attribution import Attribution
from fxcache.runtime.interface import GraphInfo, Outcome, TensorSpec

_SAMPLES = 1 << 18
"""Numbers kept of what the trunk adds: products of two steps are means over them, and a megabyte per step is little."""


@dataclass(frozen=True)
class Change:
    """From one step of a branch to the next."""

    step: int
    """Index of the later one."""
    read: float
    """Relative change of what the first block reads."""
    output: float
    """Relative change of the output of the model."""
    ratio: float
    """How many times larger what the trunk adds has become: the mean over tokens of their ratios of L2 norms."""


@dataclass
class Series:
    """One branch of one generation."""

    changes: list[Change] = field(default_factory=list)
    """From its second step on."""
    times: list[float] = field(default_factory=list)
    """What the model was called with, step by step; the number of the step where no time was found."""
    added: list[Tensor] = field(default_factory=list)
    """float32, the same numbers of what the trunk adds at every step: all, or as many as `_SAMPLES`, drawn once."""
    moved: list[tuple[float, float]] = field(default_factory=list)
    """From its second step on, the squares of how far the output has moved, and what the trunk adds."""

    def products(self) -> Tensor:
        """Return [steps, steps], float64 on the CPU: mean products of the numbers that the trunk adds at two steps."""
        rows = torch.stack(self.added).cpu().double()  # not every device has float64
        return rows @ rows.T / max(1, rows.shape[1])


@dataclass
class Recorder:
    """Measurements of one model; `backend` is what it is compiled with."""

    options: Options
    series: list[Series] = field(default_factory=list)
    """One per branch and generation."""
    refusals: list[Refusal] = field(default_factory=list)
    found: bool = False
    """Whether any graph had a trunk."""
    _attribution: Attribution = field(default_factory=lambda: Attribution(host_readable=lambda tensor: True))
    _open: dict[int, Series] = field(default_factory=dict)

    def backend(self, gm: GraphModule, inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        """Compile one graph so that it runs as it is, operator by operator, and shows what passes through it."""
        graph = _Recorded(gm.__copy__(), tuple(inputs), self)
        compiled = compile_through(graph.seam, gm, inputs, self.options)
        if graph.info is None:
            return compiled
        self.found = True

        def call(*args: Any) -> Any:
            result = compiled(*args)
            assert graph.info is not None
            self._measure(graph.info, args, graph.shown)
            return result

        return call

    def _measure(self, info: GraphInfo, args: Sequence[Any], shown: Sequence[Tensor]) -> None:
        lease = self._attribution.begin(info, args)
        state = lease.state(tuple(TensorSpec(tuple(value.shape), torch.float32, value.device) for value in shown))
        if lease.store:
            known = self._open.get(id(state[0]))
            step, time = lease.now
            if not lease.stored or known is None:
                known = self._open[id(state[0])] = Series()
                self.series.append(known)
            else:
                known.changes.append(_change(step, shown, state))
                known.moved.append((_square(shown[1], state[1]), _square(shown[2], state[2])))
            known.times.append(float(step) if time is None else time)
            known.added.append(_sample(shown[2]))
        for kept, value in zip(state, shown, strict=True):
            kept.copy_(value)
        self._attribution.end(lease, Outcome())


def _change(step: int, shown: Sequence[Tensor], before: Sequence[Tensor]) -> Change:
    (read, output, added), (last_read, last_output, last_added) = shown, before
    sums = [
        residual_diff_reference(now.float(), None, last) for now, last in ((read, last_read), (output, last_output))
    ]
    moved = [float(change / size) for change, size in map(Tensor.unbind, sums)]
    ratio = (added.float().norm(dim=-1) / last_added.norm(dim=-1)).mean()
    return Change(step, moved[0], moved[1], float(ratio))


def _square(now: Tensor, before: Tensor) -> float:
    return float((now.float() - before).norm()) ** 2


def _sample(values: Tensor) -> Tensor:
    """Return numbers out of a tensor: the same places in all tensors of one size."""
    flat = values.detach().flatten()
    if flat.numel() > _SAMPLES:
        generator = torch.Generator().manual_seed(flat.numel())
        flat = flat[torch.randint(flat.numel(), (_SAMPLES,), generator=generator).to(flat.device)]
    return flat.float().clone()


class _Recorded:
    """One graph, with its trunk's values among its outputs."""

    def __init__(self, dynamo: GraphModule, inputs: tuple[Any, ...], recorder: Recorder) -> None:
        self._dynamo, self._inputs, self._recorder = dynamo, inputs, recorder
        self.info: GraphInfo | None = None
        self.shown: list[Tensor] = []
        """Of the last call: what the first block reads, the output of the model, what the trunk adds."""

    def seam(self, aten: GraphModule, inputs: Sequence[Any], **facts: Any) -> Callable[[list[Any]], Any]:
        """Add three outputs to the ATen graph, and take them out of what it returns."""
        options = self._recorder.options
        result = self._with_outputs(aten, facts)
        if isinstance(result, Refusal):
            self._recorder.refusals.append(result)
            return lower(aten, inputs, options, facts, rewritten=False)
        compiled = lower(result, inputs, options, facts, rewritten=False)

        def boxed(flat: list[Any]) -> Any:
            *values, read, output, left, entered = compiled(flat)
            self.shown = [read, output, left if entered is None else left - entered]
            return values

        boxed._boxed_call = True  # type: ignore[attr-defined]
        return boxed

    def _with_outputs(self, aten: GraphModule, facts: Mapping[str, Any]) -> GraphModule | Refusal:
        if not facts.get("is_inference", False):
            return Refusal("gradients are needed: record under torch.no_grad()")
        options, static = self._recorder.options, facts.get("static_input_idxs", ())
        mine = copy_graph(aten)
        placeholders = [node for node in mine.graph.nodes if node.op == "placeholder"]
        region = discover(mine.graph, {placeholders[i] for i in static}, options)
        if isinstance(region, Refusal):
            return region
        plan = Plan(region, options)
        gather_references(mine, plan)
        (output,) = mine.graph.find_nodes(op="output")
        given = [node for node in output.args[0] if isinstance(node, Node) and is_float_tensor(node)]
        if not given:
            return Refusal("the graph with the trunk returns no floating-point tensor")
        main = main_stream(plan)
        shown = (plan.indicator_out, max(given, key=numel_hint), region.streams[main].live_out, plan.references[main])
        output.args = ((*output.args[0], *shown),)
        mine.recompile()
        roles = roles_of(self._dynamo, self._inputs, aten, static)
        self.info = GraphInfo(signature([region]), options, roles, trunk=region.trunk.label)
        return mine
