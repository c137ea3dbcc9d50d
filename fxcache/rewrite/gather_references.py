"""Pass: put in front of the middle what the branches need from outside."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from fxcache.regions.references import Copy, Reference
from fxcache.rewrite.plan import Plan, facts_of, fake_result


def gather_references(gm: GraphModule, plan: Plan) -> int:
    """Move hoisted nodes in front of the middle and copy the glue that references go through; return the nodes made
    or moved.

    Before::

        b1 = block1(h0, e0);  mask = expand(m);  b2 = block2(b1);  y = slice(cat([e0, b2]), ...);  use(y, mask)

    after (the middle is ``b1 .. y``; ``y`` is cached against ``ref``)::

        mask = expand(m);  ref = slice(cat([e0, h0]), ...);  b1 = block1(h0, e0);  ...  use(y, mask)
    """
    region = plan.region
    anchor = region.anchor
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    moved = [node for node in region.hoisted if order[node] > order[anchor]]
    for node in moved:
        anchor.prepend(node)
    made: dict[Copy, Node] = {}
    with gm.graph.inserting_before(anchor):
        plan.references = [
            None if stream.reference is None else _emit(gm, stream.reference, made) for stream in region.streams
        ]
        if plan.options.estimates_change:
            plan.indicator_out = region.indicator.stream
            return len(moved) + len(made)
        plan.indicator_out = _emit(gm, region.indicator.out, made)
        inp = region.indicator.inp
        if plan.options.l1_hidden_states_diff_threshold is None and inp is not None:
            plan.indicator_in = _emit(gm, inp, made)
    return len(moved) + len(made)


def _emit(gm: GraphModule, reference: Reference, made: dict[Copy, Node]) -> Node:
    if isinstance(reference, Node):
        return reference
    if reference not in made:
        replaced = {node: _emit(gm, value, made) for node, value in reference.replaced}
        copy = gm.graph.node_copy(reference.node, lambda node: replaced.get(node, node))
        copy.meta = facts_of(reference.node) | {"val": fake_result(copy)}
        made[reference] = copy
    return made[reference]
