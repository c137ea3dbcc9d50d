"""Choose where to cut the trunk: in front of the middle and behind it.

Between two blocks several positions are possible; the one where the fewest elements are alive is taken, so that a
slice which drops the text tokens falls inside the middle and only the image tokens are cached. On ties the front cut
is the latest and the back cut the earliest, so glue between blocks (fresh control residuals) is computed anew on
every step.
"""

from __future__ import annotations

from collections.abc import Collection

from torch.fx import Node

from fxcache.regions.dataflow import Flow, is_float_tensor, is_heavy, is_norm, value_of
from fxcache.regions.trunk import Trunk


def front_cut(trunk: Trunk, first_blocks: int, flow: Flow) -> int | None:
    """Position between block ``first_blocks - 1`` and the next; None when every position splits a value.

    With no first blocks it is in front of the trunk: the latest position at which no tuple is alive.
    """
    if not first_blocks:
        positions = range(trunk.blocks[0].start, 0, -1)
        return next((cut for cut in positions if not _splits_tuple(cut, flow, flow.position)), None)
    before, after = trunk.blocks[first_blocks - 1], trunk.blocks[first_blocks]
    return _best(trunk, flow, before.end, after.start, latest=True)


def back_cut(trunk: Trunk, last_blocks: int, flow: Flow) -> int | None:
    """Position in front of the last ``last_blocks`` blocks, or behind the trunk when that is 0."""
    if last_blocks:
        before, after = trunk.blocks[-last_blocks - 1], trunk.blocks[-last_blocks]
        return _best(trunk, flow, before.end, after.start, latest=False)
    start = trunk.blocks[-1].end
    start = max([start, *(side.end for side in trunk.side_blocks if side.start >= start)])
    dependent = flow.depends_on(trunk.blocks[0].nodes)
    end = start
    while end < len(flow.nodes) - 1:
        node = flow.nodes[end]
        # The suffix's own norms and products need the fresh conditioning: they must not slide into the middle.
        if node in dependent and (is_heavy(node) or is_norm(node)):
            break
        end += 1
    return _best(trunk, flow, start, end, latest=False)


def _best(trunk: Trunk, flow: Flow, start: int, end: int, *, latest: bool) -> int | None:
    start = max([start, *(side.end for side in trunk.side_blocks if start <= side.start < end)])
    dependent = flow.depends_on(trunk.blocks[0].nodes)
    positions = [cut for cut in range(start, end + 1) if not _splits_tuple(cut, flow, dependent)]
    if not positions:
        return None
    cost = {cut: flow.live_numel(cut, lambda node: node in dependent and is_float_tensor(node)) for cut in positions}
    least = min(cost.values())
    best = [cut for cut in positions if cost[cut] == least]
    return best[-1] if latest else best[0]


def _splits_tuple(cut: int, flow: Flow, dependent: Collection[Node]) -> bool:
    """Say whether a value that is a tuple of tensors would be alive across the cut."""
    return any(isinstance(value_of(node), (tuple, list)) for node in flow.live(cut, lambda node: node in dependent))
