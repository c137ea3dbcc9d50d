"""Pass: the stored values become inputs of the graph, and the decision is made from them."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch.fx import GraphModule, Node

import fxcache.kernels as kernels
from fxcache.regions.dataflow import tensor_of
from fxcache.regions.region import Region
from fxcache.rewrite.plan import History, Plan, StateTensor, call, fake_mode_of
from fxcache.rewrite.sizes import as_input, read_sizes

Size = tuple["int | torch.SymInt", ...]


def thread_state(gm: GraphModule, plan: Plan) -> int:
    """Add the state as inputs and compute the decision in front of the middle; return the number of inputs added.

    After::

        control, health, clock, reference, cache_0 = <new inputs>
        sums  = fxcache::residual_diff(h1, h0, reference[0])
        reuse, slot, first, weights = fxcache::decide(sums, [], health, clock, control)
        out   = fxcache_compute(...)

    ``reference`` is float32 (its exactness is what lets two equal calls have difference 0 in half precision), the
    caches have the dtype of their streams. Every state tensor has one entry per stored step.
    """
    assert plan.indicator_out is not None and plan.compute is not None
    value = tensor_of(plan.indicator_out)
    assert value is not None
    describe_state(plan, value, row=0)
    plan.change = _change(plan, value)
    health = (len(plan.histories), plan.options.history)
    plan.placeholders = add_inputs(gm, (kernels.CONTROL_SIZE,), health, plan.state, value)
    with gm.graph.inserting_before(plan.compute):
        read_sizes(gm, plan)
        observation = observe(gm, plan)
        _decide(gm, plan, observation)
    return len(plan.placeholders)


def describe_state(plan: Plan, value: torch.Tensor, row: int) -> None:
    """Say what is stored, from this row of the health on; ``value`` is what the indicator looks at."""
    plan.reference = _reference(plan, value, row)
    plan.caches = _caches(plan, row + (plan.reference is not None))


def _reference(plan: Plan, value: torch.Tensor, row: int) -> History | None:
    options = plan.options
    if not options.observes:
        return None
    factor = downsample_factor(plan)
    entries = options.history if options.forecasts_indicator else 1
    shape = (entries, *value.shape[:-1], -(-value.shape[-1] // factor))
    wide = torch.promote_types(value.dtype, torch.float32)
    return History(StateTensor(f"{plan.prefix}reference", shape, wide, value.device), row)


def _change(plan: Plan, value: torch.Tensor) -> tuple[StateTensor, ...]:
    if not plan.options.estimates_change:
        return ()
    out = tensor_of(plan.region.streams[main_stream(plan)].live_out)
    assert out is not None
    specs = [
        StateTensor(name, tuple(like.shape), torch.promote_types(like.dtype, torch.float32), like.device)
        for name, like in (("last_out", out), ("last_inp", value))
    ]
    return (*specs, StateTensor("change", (3,), torch.float32, value.device))


def main_stream(plan: Plan) -> int:
    """Number of the stream that the indicator belongs to."""
    return min(_main_streams(plan.region))


def _caches(plan: Plan, row: int) -> list[History]:
    options, found = plan.options, []
    main = _main_streams(plan.region)
    for i, stream in enumerate(plan.region.streams):
        out = tensor_of(stream.live_out)
        assert out is not None
        enabled = options.enable_calibrator if i in main else options.enable_encoder_calibrator
        predicted = bool(options.forecast) and enabled and out.is_floating_point()
        entries, dtype, gram, absolute = 1, out.dtype, None, False
        if predicted:
            entries = options.history
            dtype = getattr(torch, options.calibrator_dtype) if options.calibrator_dtype else dtype
            absolute = options.calibrator_cache_type == "hidden_states"
            if options.calibrator == "dmd":
                gram = StateTensor(f"{plan.prefix}gram_{i}", (entries, entries), torch.float64, out.device)
        spec = StateTensor(f"{plan.prefix}cache_{i}", (entries, *out.shape), dtype, out.device)
        found.append(History(spec, row + i, predicted, gram, i in main, absolute))
    return found


def _main_streams(region: Region) -> set[int]:
    """Numbers of the streams that the indicator belongs to: cached against what it looks at; if none is, the first."""
    main = {i for i, stream in enumerate(region.streams) if region.indicator.stream in stream.sources}
    return main or {0}


def observe(gm: GraphModule, plan: Plan) -> Node | None:
    """Add what the decision looks at, where the graph is being written; None without an indicator."""
    if plan.reference is None:
        return None
    out, reference = plan.indicator_out, plan.placeholders[plan.reference.spec.name]
    factor = downsample_factor(plan)
    if plan.options.forecasts_indicator:
        products = torch.ops.fxcache.residual_products.default
        return call(gm.graph, products, (out, plan.indicator_in, reference, factor))
    only = call(gm.graph, torch.ops.aten.select.int, (reference, 0, 0))
    diff = torch.ops.fxcache.residual_diff.default
    arguments = (out, plan.indicator_in, only, factor, plan.options.important_condition_threshold)
    sums = call(gm.graph, diff, arguments)
    if not plan.change:
        return sums
    return call(gm.graph, torch.ops.aten.cat.default, ([sums, plan.placeholders["change"]],))


def _decide(gm: GraphModule, plan: Plan, observation: Node | None) -> None:
    added = plan.placeholders
    grams = [added[history.gram.name] for history in plan.with_gram if history.gram is not None]
    forecast = plan.options.forecast if any(history.predicted for history in plan.caches) else ""
    singles = [history.row for history in plan.histories if history.spec.shape[0] == 1]
    decision = call(
        gm.graph,
        torch.ops.fxcache.decide.default,
        (observation, grams, added["health"], added["clock"], added["control"], forecast, singles),
        {**({"sizes": list(plan.sizes.values())} if plan.sizes else {}), **of_ranks(plan)},
    )
    plan.reuse, plan.slot, plan.first, plan.weights = (
        call(gm.graph, operator.getitem, (decision, i)) for i in range(4)
    )


def of_ranks(plan: Plan) -> dict[str, list[str]]:
    """Arguments of a decision that the ranks of a model make together."""
    return {"groups": list(plan.groups)} if plan.groups else {}


def downsample_factor(plan: Plan) -> int:
    """Every how-manieth channel of the indicator counts: no more than it has."""
    value = None if plan.indicator_out is None else tensor_of(plan.indicator_out)
    assert value is not None
    size = value.shape[-1]
    return min(plan.options.indicator_stride, size if isinstance(size, int) else 1)


def add_inputs(
    gm: GraphModule, control: Size, health: Size, state: Sequence[StateTensor], like: torch.Tensor
) -> dict[str, Node]:
    """Add control, health, clock and the state to the inputs of the graph, in this order, and return them by name.

    The health has as many columns as steps are remembered, also where nothing is predicted and every history has one
    entry.
    """
    specs = (
        StateTensor("control", control, torch.float64, torch.device("cpu")),
        StateTensor("health", health, torch.float32, like.device),
        StateTensor("clock", (3,), torch.float32, like.device),
        *state,
    )
    free: dict[str, torch.SymInt] = {}
    return {spec.name: _add_placeholder(gm, spec, like, free) for spec in specs}


def _add_placeholder(gm: GraphModule, spec: StateTensor, like: torch.Tensor, free: dict[str, torch.SymInt]) -> Node:
    last = [node for node in gm.graph.nodes if node.op == "placeholder"][-1]
    with gm.graph.inserting_after(last):
        node = gm.graph.placeholder(f"fxcache_{spec.name}")
    mode = fake_mode_of([like])
    shape = tuple(as_input(size, mode.shape_env, free) for size in spec.shape)
    with mode:
        node.meta["val"] = torch.empty(shape, dtype=spec.dtype, device=spec.device)
    return node
