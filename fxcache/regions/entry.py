"""The streams as they enter the trunk, and what its first block makes of them: what `Fn_compute_blocks=0` needs."""

from __future__ import annotations

from collections.abc import Collection

from torch.fx import Node

from fxcache.regions.cuts import front_cut
from fxcache.regions.dataflow import Flow, by_size, is_float_tensor, is_heavy, numel_hint, value_of
from fxcache.regions.references import Copy, Reference, ReferenceFinder, leaves
from fxcache.regions.trunk import Trunk


def entering(trunk: Trunk, flow: Flow, parameters: Collection[Node]) -> list[Node]:
    """Nodes that the first block adds to, largest first: its exits, followed back on their residual paths."""
    first = trunk.blocks[0]
    behind = front_cut(trunk, 1, flow)
    if behind is None:
        return []
    dependent = flow.depends_on(first.nodes)
    inside = {node for node in flow.between(first.start, behind) if node in dependent}
    finder = ReferenceFinder([*trunk.side_blocks, *trunk.blocks], inside, parameters)
    found: dict[Node, None] = {}
    for exit_ in flow.live(behind, lambda node: node in inside and is_float_tensor(node)):
        reference = finder.find(exit_)
        for leaf in () if reference is None else leaves(reference):
            if leaf not in inside and is_float_tensor(leaf) and flow.position[leaf] < first.start:
                found[leaf] = None
    streams = [node for node in found if node not in parameters and node.op == "call_function"]
    return sorted(streams, key=by_size, reverse=True)


def first_read(stream: Node, trunk: Trunk, inside: Collection[Node]) -> Reference:
    """What the first block's first matrix product reads of a stream: normed and modulated by the time.

    The nodes ``inside`` are evaluated once more for it. Source: TeaCache (arXiv 2411.19108) compares this value.
    """
    seen: set[Node] = {stream}
    size = numel_hint(stream)
    for node in trunk.blocks[0].nodes:
        read = [arg for arg in node.all_input_nodes if arg in seen]
        if not read:
            continue
        if is_heavy(node):
            whole = [arg for arg in read if is_float_tensor(arg) and numel_hint(arg) == size]
            return _copy(whole[0], inside, {}) if whole else stream
        if isinstance(value_of(node), (tuple, list)) or is_float_tensor(node):
            seen.add(node)
    return stream


def _copy(node: Node, inside: Collection[Node], made: dict[Node, Reference]) -> Reference:
    if node not in inside:
        return node
    if node not in made:
        pairs = tuple((arg, _copy(arg, inside, made)) for arg in node.all_input_nodes if arg in inside)
        made[node] = Copy(node, pairs)
    return made[node]
