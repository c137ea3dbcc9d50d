"""Passes for a trunk of several units: their state becomes inputs of the graph, and they are decided together.

These passes see all units at once, so they take the list of their plans.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch.fx import GraphModule, Node

import fxcache.kernels as kernels
from fxcache.regions.dataflow import tensor_of
from fxcache.rewrite.plan import Plan, StateTensor, call
from fxcache.rewrite.thread_state import add_inputs, describe_state, observe, of_ranks

OBSERVED = "observed"


def thread_units(gm: GraphModule, plans: Sequence[Plan]) -> int:
    """Add the state of all units as inputs; return their number.

    After, where the step before decides::

        control, health, clock, observed, unit_0_reference, unit_0_cache_0, unit_1_reference, ... = <new inputs>
        reuse, slot, first, weights = fxcache::decide_blocks(observed, [], health, clock, control, 0, 2, ...)
        reuse_0 = reuse[0];  reuse_1 = reuse[1];  ...
    """
    row = 0
    for plan in plans:
        plan.indicator_out = _indicator(plan)
        describe_state(plan, _value(plan), row)
        row += len(plan.histories)
    value, options = _value(plans[0]), plans[0].options
    control = (len(plans), kernels.BLOCK_CONTROL_SIZE)
    placeholders = add_inputs(gm, control, (row, options.history), state_of(plans), value)
    for plan in plans:
        plan.placeholders = placeholders
    if observes_behind(plans) or plans[0].reference is None:
        with gm.graph.inserting_before(list(placeholders.values())[-1].next):
            _decide(gm, plans, 0, len(plans), placeholders.get(OBSERVED))
    return len(placeholders)


def state_of(plans: Sequence[Plan]) -> list[StateTensor]:
    """All that is kept but for the health; in front, if it decides, what was observed of all units at the last step."""
    of_units = [spec for plan in plans for spec in plan.state]
    if not observes_behind(plans):
        return of_units
    return [StateTensor(OBSERVED, (len(plans), 2), torch.float32, _value(plans[0]).device), *of_units]


def observes_behind(plans: Sequence[Plan]) -> bool:
    """Whether the differences are taken at one step and read at the next."""
    return plans[0].reference is not None and plans[0].options.prune_indicator == "previous"


def observe_unit(gm: GraphModule, plans: Sequence[Plan], unit: int) -> Node | None:
    """Add the difference of a unit's input in front of it, and the decision about it if it is made there.

    After::

        sums = fxcache::residual_diff(h3, None, unit_2_reference[0])
    """
    plan = plans[unit]
    assert plan.compute is not None
    with gm.graph.inserting_before(plan.compute):
        sums = observe(gm, plan)
        if sums is not None and not observes_behind(plans):
            one = call(gm.graph, torch.ops.aten.unsqueeze.default, (sums, 0))
            _decide(gm, plans, unit, 1, one)
    return sums


def commit_observed(gm: GraphModule, plans: Sequence[Plan], observed: Sequence[Node | None]) -> int:
    """Write the differences of all units for the next step; return how many.

    After::

        observed.copy_(view(cat([sums_0, sums_1, ...]), [n, 2]))
    """
    sums = [node for node in observed if node is not None]
    if not observes_behind(plans):
        return 0
    (output,) = gm.graph.find_nodes(op="output")
    with gm.graph.inserting_before(output):
        joined = call(gm.graph, torch.ops.aten.cat.default, (sums,))
        rows = call(gm.graph, torch.ops.aten.view.default, (joined, [len(sums), 2]))
        call(gm.graph, torch.ops.aten.copy_.default, (plans[0].placeholders[OBSERVED], rows))
    return len(sums)


def _decide(gm: GraphModule, plans: Sequence[Plan], first: int, count: int, observed: Node | None) -> None:
    added = plans[0].placeholders
    grams, gram_units = [], []
    for number, plan in enumerate(plans):
        for history in plan.with_gram:
            assert history.gram is not None
            grams.append(added[history.gram.name])
            gram_units.append(number)
    rows = [number for number, plan in enumerate(plans) for _ in plan.histories]
    histories = [history for plan in plans for history in plan.histories]
    singles = [history.row for history in histories if history.spec.shape[0] == 1]
    forecast = plans[0].options.forecast if any(history.predicted for history in histories) else ""
    decision = call(
        gm.graph,
        torch.ops.fxcache.decide_blocks.default,
        (
            observed,
            grams,
            added["health"],
            added["clock"],
            added["control"],
            first,
            count,
            rows,
            singles,
            gram_units,
            forecast,
        ),
        of_ranks(plans[0]),
    )
    reuse, slots, firsts, weights = (call(gm.graph, operator.getitem, (decision, i)) for i in range(4))
    for place, plan in enumerate(plans[first : first + count]):

        def of_unit(values: Node, place: int = place) -> Node:
            return call(gm.graph, torch.ops.aten.select.int, (values, 0, place))

        plan.reuse, plan.slot, plan.first = of_unit(reuse), of_unit(slots), of_unit(firsts)
        plan.weights = of_unit(weights) if forecast else None


def _indicator(plan: Plan) -> Node:
    """What enters the unit, as it is: no glue in between."""
    indicator = plan.region.indicator.out
    assert isinstance(indicator, Node)
    return indicator


def _value(plan: Plan) -> torch.Tensor:
    value = tensor_of(_indicator(plan))
    assert value is not None
    return value
