"""Pass: the cached tensors become inputs of the graph, and the decision is made from them."""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node

import fxcache.kernels as kernels
from fxcache.regions.dataflow import tensor_of
from fxcache.rewrite.plan import Plan, StateTensor, call, fake_mode_of


def thread_state(gm: GraphModule, plan: Plan) -> int:
    """Add the state as inputs and compute the decision in front of the middle; return the number of inputs added.

    After::

        control, health, clock, reference, cache_0 = <new inputs>
        sums  = fxcache::residual_diff(h1, h0, reference)
        reuse, store = fxcache::decide(sums, health, clock, control)
        out   = fxcache_compute(...)

    ``reference`` is float32 (its exactness is what lets two equal calls have difference 0 in half precision), the
    caches have the dtype of their streams.
    """
    indicator = plan.region.indicator.out
    value = tensor_of(indicator)
    assert value is not None and plan.compute is not None
    factor = min(plan.options.downsample_factor, _channels(value))
    shape = (*value.shape[:-1], -(-value.shape[-1] // factor))
    wide = torch.promote_types(value.dtype, torch.float32)
    plan.state = [StateTensor("reference", tuple(shape), wide, value.device)]
    for i, stream in enumerate(plan.region.streams):
        out = tensor_of(stream.live_out)
        assert out is not None
        plan.state.append(StateTensor(f"cache_{i}", tuple(out.shape), out.dtype, out.device))
    health = StateTensor("health", (len(plan.state),), torch.float32, value.device)
    clock = StateTensor("clock", (3,), torch.float32, value.device)
    control = StateTensor("control", (kernels.CONTROL_SIZE,), torch.float64, torch.device("cpu"))
    for spec in (control, health, clock, *plan.state):
        plan.placeholders[spec.name] = _add_placeholder(gm, spec, value)

    added = plan.placeholders
    with gm.graph.inserting_before(plan.compute):
        sums = call(
            gm.graph,
            torch.ops.fxcache.residual_diff.default,
            (indicator, plan.indicator_in, added["reference"], factor, plan.options.important_condition_threshold),
        )
        decision = call(
            gm.graph, torch.ops.fxcache.decide.default, (sums, added["health"], added["clock"], added["control"])
        )
        plan.reuse = call(gm.graph, operator.getitem, (decision, 0))
        plan.store = call(gm.graph, operator.getitem, (decision, 1))
    return len(added)


def _channels(value: torch.Tensor) -> int:
    size = value.shape[-1]
    return size if isinstance(size, int) else 1


def _add_placeholder(gm: GraphModule, spec: StateTensor, like: torch.Tensor) -> Node:
    last = [node for node in gm.graph.nodes if node.op == "placeholder"][-1]
    with gm.graph.inserting_after(last):
        node = gm.graph.placeholder(f"fxcache_{spec.name}")
    with fake_mode_of([like]):
        node.meta["val"] = torch.empty(spec.shape, dtype=spec.dtype, device=spec.device)
    return node
