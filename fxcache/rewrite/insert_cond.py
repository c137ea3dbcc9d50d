"""Pass: the call of the middle becomes a conditional with a cheap branch."""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule, Node

from fxcache.rewrite.outline_middle import COMPUTE
from fxcache.rewrite.plan import Plan, call

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
    caches = [plan.placeholders[spec.name] for spec in plan.state[1:]]
    wanted = [node for node in [*plan.references, *caches] if node is not None]
    given = [arg for arg in old.args if isinstance(arg, Node)]
    operands = list(dict.fromkeys([*given, *wanted]))
    _widen(getattr(gm, COMPUTE), operands[len(given) :])
    gm.add_submodule(REUSE, _reuse_branch(operands, plan.references, caches))
    with gm.graph.inserting_before(old):
        branches = [gm.graph.get_attr(REUSE), gm.graph.get_attr(COMPUTE)]
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
            last.meta = dict(operand.meta)
    compute.recompile()


def _reuse_branch(operands: list[Node], references: list[Node | None], caches: list[Node]) -> GraphModule:
    body = Graph()
    inside = {}
    for operand in operands:
        inside[operand] = body.placeholder(operand.name)
        inside[operand].meta = dict(operand.meta)
    outputs = [
        call(
            body,
            torch.ops.fxcache.extrapolate.default,
            (None if reference is None else inside[reference], inside[cache]),
        )
        for reference, cache in zip(references, caches, strict=True)
    ]
    body.output(tuple(outputs))
    return GraphModule(torch.nn.Module(), body)
