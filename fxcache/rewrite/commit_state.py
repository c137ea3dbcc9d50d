"""Pass: write the state behind the conditional."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from fxcache.rewrite.plan import History, Plan
from fxcache.rewrite.thread_state import downsample_factor, main_stream


def commit_state(gm: GraphModule, plan: Plan) -> int:
    """Add one ``fxcache::commit`` per stored value behind the conditional; return their number.

    After::

        out = cond(reuse, ...);  y = out[0]
        fxcache::commit(first, h1, h0, reference, health, 0)
        fxcache::commit(slot, y, h1, cache_0, health, 1)
        fxcache::window_products(slot, cache_0, gram_0)

    On a reused step the operators return after one look at the slot. The last one is added where a calibrator needs
    the products. Where changes from step to step are summed, the reference is that of every step, and has no
    slot; where the change of the output is estimated, ``fxcache::note_change(first, y, h1, ...)`` comes last.
    """
    assert plan.slot is not None and plan.first is not None
    sources: dict[int, tuple[Node | None, Node | None]] = {}
    if plan.reference is not None:
        sources[plan.reference.row] = (plan.indicator_out, plan.indicator_in)
    for history, out, reference in zip(plan.caches, plan.outputs, plan.bases, strict=True):
        sources[history.row] = (out, reference)
    if plan.change:
        _note_change(gm, plan)
    for history in reversed(plan.histories):
        cache = plan.placeholders[history.spec.name]
        slot = _slot(plan, history)
        factor = downsample_factor(plan) if history is plan.reference else 1
        with gm.graph.inserting_after(plan.outputs[-1]):
            node = gm.graph.call_function(
                torch.ops.fxcache.commit.default,
                (slot, *sources[history.row], cache, plan.placeholders["health"], history.row, factor),
            )
            node.meta["val"] = None
        if history.gram is not None:
            with gm.graph.inserting_after(node):
                products = torch.ops.fxcache.window_products.default
                node = gm.graph.call_function(products, (slot, cache, plan.placeholders[history.gram.name]))
                node.meta["val"] = None
    return len(plan.histories)


def _slot(plan: Plan, history: History) -> Node | None:
    if history is plan.reference and plan.options.sums_changes:
        return None  # on every step: where nothing may be stored, the state is scratch
    return plan.first if history.spec.shape[0] == 1 else plan.slot


def _note_change(gm: GraphModule, plan: Plan) -> None:
    state = [plan.placeholders[spec.name] for spec in plan.change]
    values = (plan.outputs[main_stream(plan)], plan.indicator_out)
    with gm.graph.inserting_after(plan.outputs[-1]):
        node = gm.graph.call_function(torch.ops.fxcache.note_change.default, (plan.first, *values, *state))
        node.meta["val"] = None
