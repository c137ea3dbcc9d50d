"""Pass: half-precision values cross the conditional in float32."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from fxcache.regions.dataflow import HALF, base_of, tensor_of
from fxcache.rewrite.insert_cond import REUSE
from fxcache.rewrite.outline_middle import COMPUTE
from fxcache.rewrite.plan import Plan, convert, fake_mode_of, fake_result


def keep_precision(gm: GraphModule, plan: Plan) -> int:
    """Widen computed half-precision operands and outputs of the conditional; return the number of conversions.

    Before::

        out = cond(reuse, ..., (h1,));  y = out[0]

    after::

        w = convert(h1, float32);  out = cond(reuse, ..., (w,));  y = convert(out[0], bfloat16)
        fxcache_compute(w): h1 = convert(w, bfloat16);  ...;  return convert(y, float32)

    Inductor keeps float32 inside a fused kernel and rounds where a kernel ends.  The conditional adds such ends; with
    this they round nothing, and a computed step is no farther from the exact result than without the conditional.
    """
    if plan.options.inner_backend != "inductor":
        return 0
    assert plan.compute is not None
    branches = [getattr(gm, plan.prefix + name) for name in (REUSE, COMPUTE)]
    wide = _widen_operands(gm, plan.compute, branches)
    plan.references = [None if node is None else wide.get(node, node) for node in plan.references]
    return len(wide) + _widen_outputs(gm, plan, branches)


def _widen_operands(gm: GraphModule, cond: Node, branches: list[GraphModule]) -> dict[Node, Node]:
    operands: tuple[Node, ...] = cond.args[3]  # type: ignore[assignment]
    wide: dict[Node, Node] = {}
    for place, node in enumerate(operands):
        value = tensor_of(node)
        if value is None or value.dtype not in HALF or value.dim() < 2 or base_of(node).op != "call_function":
            continue
        with gm.graph.inserting_before(cond):
            wide[node] = convert(gm.graph, node, torch.float32)
        for branch in branches:
            inputs = branch.graph.find_nodes(op="placeholder")
            inside = inputs[place]
            meta, inside.meta["val"] = dict(inside.meta), wide[node].meta["val"]
            with branch.graph.inserting_after(inputs[-1]):
                narrow = convert(branch.graph, inside, value.dtype)
            narrow.meta = {**meta, "val": narrow.meta["val"]}
            for user in [user for user in inside.users if user is not narrow]:
                user.replace_input_with(inside, narrow)
    cond.update_arg(3, tuple(wide.get(node, node) for node in operands))
    return wide


def _widen_outputs(gm: GraphModule, plan: Plan, branches: list[GraphModule]) -> int:
    cond = plan.compute
    assert cond is not None
    for branch in branches:
        (output,) = branch.graph.find_nodes(op="output")
        members: list[Any] = []
        for node in output.args[0]:
            with branch.graph.inserting_before(output):
                half = node.meta["val"].dtype in HALF
                members.append(convert(branch.graph, node, torch.float32) if half else node)
        output.args = (tuple(members),)
    traced = cond.meta["val"]
    with fake_mode_of(list(traced)):
        cond.meta["val"] = tuple(
            torch.empty(v.shape, dtype=torch.float32 if v.dtype in HALF else v.dtype, device=v.device) for v in traced
        )
    changed = 0
    for out, before, after in zip(plan.outputs, traced, cond.meta["val"], strict=True):
        if before.dtype not in HALF:
            continue
        users, member = list(out.users), out if out.target is operator.getitem else out.args[0]
        assert isinstance(member, Node)
        member.meta["val"] = after
        if member is not out:  # it has crossed flat
            out.meta["val"] = fake_result(out)
        with gm.graph.inserting_after(out):
            narrow = convert(gm.graph, out, before.dtype)
        for user in users:
            user.replace_input_with(out, narrow)
        changed += 1
    return changed
