"""Pass: write the state behind the conditional."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from fxcache.rewrite.plan import Plan


def commit_state(gm: GraphModule, plan: Plan) -> int:
    """Add one ``fxcache::commit`` per cached tensor behind the conditional; return their number.

    After::

        out = cond(reuse, ...);  y = out[0]
        fxcache::commit(store, h1, h0, reference, health, 0)
        fxcache::commit(store, y, h1, cache_0, health, 1)

    On a reused step the operators return after one look at ``store``.
    """
    assert plan.store is not None
    added = plan.placeholders
    sources = [(plan.region.indicator.out, plan.indicator_in), *zip(plan.outputs, plan.references, strict=True)]
    channels = plan.region.indicator.out.meta["val"].shape[-1]
    factor = min(plan.options.downsample_factor, channels if isinstance(channels, int) else 1)
    for slot, (spec, (out, inp)) in reversed(list(enumerate(zip(plan.state, sources, strict=True)))):
        with gm.graph.inserting_after(plan.outputs[-1]):
            node = gm.graph.call_function(
                torch.ops.fxcache.commit.default,
                (plan.store, out, inp, added[spec.name], added["health"], slot, factor if slot == 0 else 1),
            )
            node.meta["val"] = None
    return len(plan.state)
