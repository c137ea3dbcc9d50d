"""Pass: the call of the middle becomes a conditional with a cheap branch."""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule, Node

from fxcache.rewrite.outline_middle import COMPUTE, flat
from fxcache.rewrite.plan import Plan, call, facts_of

REUSE = "fxcache_reuse"


def insert_cond(gm: GraphModule, plan: Plan) -> int:
    """Replace the call of the middle by ``torch.cond`` with a branch that extrapolates; return the number of branches.

    Before::

        out = fxcache_compute(h1, temb)

    after::

        out = cond(reuse, fxcache_reuse, fxcache_compute, (h1, temb, cache_0))
        fxcache_reuse(h1, temb, cache_0) = (fxcache::extrapolate(h1, cache_0),)

    Both branches are pure: the state is written behind the conditional, by another pass.
    """
    old = plan.compute
    assert old is not None and plan.reuse is not None
    caches = [plan.placeholders[history.spec.name] for history in plan.caches]
    weights = [plan.weights] if any(history.predicted for history in plan.caches) else []
    wanted = [node for node in [*plan.bases, *caches, *weights] if node is not None]
    given = [arg for arg in old.args if isinstance(arg, Node)]
    operands = list(dict.fromkeys([*given, *wanted]))
    _widen(getattr(gm, plan.prefix + COMPUTE), operands[len(given) :])
    gm.add_submodule(plan.prefix + REUSE, _reuse_branch(operands, plan))
    with gm.graph.inserting_before(old):
        branches = [gm.graph.get_attr(plan.prefix + name) for name in (REUSE, COMPUTE)]
        plan.compute = gm.graph.call_function(torch.ops.higher_order.cond, (plan.reuse, *branches, tuple(operands)))
        plan.compute.meta = dict(old.meta)
    old.replace_all_uses_with(plan.compute)
    gm.graph.erase_node(old)
    return 1


def _widen(compute: GraphModule, extra: list[Node]) -> None:
    """Give the compute branch inputs that it does not use: the branches of a conditional take the same operands."""
    last = [node for node in compute.graph.nodes if node.op == "placeholder"][-1]
    for operand in extra:
        with compute.graph.inserting_after(last):
            last = compute.graph.placeholder(operand.name)
            last.meta = facts_of(operand)


def _reuse_branch(operands: list[Node], plan: Plan) -> GraphModule:
    body = Graph()
    inside: dict[Node | None, Node | None] = {None: None}
    for operand in operands:
        copy = inside[operand] = body.placeholder(operand.name)
        copy.meta = facts_of(operand)
    outputs = []
    rows = {history.row: row for row, history in enumerate(plan.with_gram)}
    assert plan.compute is not None
    crossing = plan.compute.meta["val"]
    for stream, reference, history, given in zip(plan.region.streams, plan.bases, plan.caches, crossing, strict=True):
        arguments: list[object] = [inside[reference], inside[plan.placeholders[history.spec.name]]]
        if history.predicted:
            # without products of its own every stream has the weights of the first row
            row = rows.get(history.row, 0)
            arguments.append(call(body, torch.ops.aten.select.int, (inside[plan.weights], 0, row)))
        traced = stream.live_out.meta["val"]
        wanted = traced.dtype
        kwargs = {} if wanted == history.spec.dtype else {"dtype": wanted}
        out = call(body, torch.ops.fxcache.extrapolate.default, tuple(arguments), kwargs)
        outputs.append(flat(body, out) if given.dim() < traced.dim() else out)
    body.output(tuple(outputs))
    return GraphModule(torch.nn.Module(), body)
