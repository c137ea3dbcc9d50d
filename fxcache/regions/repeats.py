"""Find repeated blocks where no module names them: the longest part of the graph that repeats itself.

Layers that come from one loop leave the same operators with the same sizes, whoever owns the weights. The part with
most matrix products that follows itself at least a few times is cut where the fewest elements are alive. It has to
hold half of all matrix products: a loop inside of something else is no trunk.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence

import torch
from torch.fx import Node

from fxcache.regions.blocks import Block, Stack, module_path
from fxcache.regions.dataflow import Flow, is_float_tensor, is_heavy, shape_hint, tensor_of, value_of

UNNAMED = "repeated"
"""Name of a stack whose blocks have no module in common."""


def find_repeats(flow: Flow, least: int) -> list[Stack]:
    """The stack of blocks that a part of the graph forms which is repeated ``least`` times or more, if there is one.

    Names are those of the modules around all of its blocks. Nodes that are no tensors (sizes) belong to no block.
    """
    nodes = [n for n in flow.nodes if n.op == "call_function" and isinstance(value_of(n), (torch.Tensor, tuple, list))]
    heavy = [i for i, node in enumerate(nodes) if is_heavy(node)]
    numbers: dict[object, int] = {}
    kinds = [numbers.setdefault(_kind(node), len(numbers)) for node in nodes]

    def work(run: tuple[int, int, int]) -> int:
        start, period, length = run
        return bisect_left(heavy, start + length // period * period) - bisect_left(heavy, start)

    runs = list(_runs(kinds, heavy, least))
    if not runs:
        return []
    # Of equal work the shortest period: two blocks together repeat themselves as well.
    start, period, length = best = max(runs, key=lambda run: (work(run), -run[1]))
    if 2 * work(best) < len(heavy):
        return []
    times = length // period
    offsets = range(length - times * period + 1)
    start += min(offsets, key=lambda offset: _alive(flow, nodes, start + offset, period))
    return [_stack(flow, nodes[start : start + times * period], period)]


def _kind(node: Node) -> tuple[object, ...]:
    """What must be equal for two nodes to be the same node of two blocks."""
    value = tensor_of(node)
    inputs = tuple(shape_hint(arg) for arg in node.all_input_nodes)
    return str(node.target), shape_hint(node), None if value is None else value.dtype, inputs


def _runs(kinds: Sequence[int], heavy: Sequence[int], least: int) -> Iterator[tuple[int, int, int]]:
    """Start, period and length of the longest part of every period that follows itself often enough.

    Periods are read off the heavy nodes, of which there are few: equal ones at equal distances.
    """
    for step in range(1, len(heavy) // least + 1):
        pairs = zip(heavy, heavy[step:], strict=False)
        period, number = _longest([later - i if kinds[i] == kinds[later] else 0 for i, later in pairs])[::2]
        if period and number >= (least - 1) * step:
            same, start, length = _longest([a == b for a, b in zip(kinds, kinds[period:], strict=False)])
            if same and length >= (least - 1) * period:
                yield start, period, length + period


def _longest(values: Sequence[int]) -> tuple[int, int, int]:
    """The value other than 0 that stands longest without a change, where it begins, and how often it stands there."""
    groups = ((value, list(places)) for value, places in itertools.groupby(range(len(values)), values.__getitem__))
    found = [(value, places[0], len(places)) for value, places in groups if value]
    return max(found, key=lambda group: group[2], default=(0, 0, 0))


def _alive(flow: Flow, nodes: Sequence[Node], start: int, period: int) -> int:
    """Elements that pass from the first block to the second when the blocks begin at ``start``."""
    dependent = flow.depends_on(nodes[start : start + period])
    cut = flow.position[nodes[start + period]]
    return flow.live_numel(cut, lambda node: node in dependent and is_float_tensor(node))


def _stack(flow: Flow, nodes: Sequence[Node], period: int) -> Stack:
    name = ".".join(_common_path(nodes)) or UNNAMED
    blocks = []
    for index in range(len(nodes) // period):
        members = list(nodes[index * period : (index + 1) * period])
        start, end = flow.position[members[0]], flow.position[members[-1]] + 1
        blocks.append(Block(name, index, UNNAMED, members, start, end))
    return Stack(name, blocks)


def _common_path(nodes: Sequence[Node]) -> tuple[str, ...]:
    """Path of the innermost module in whose call all nodes were traced."""
    paths = []
    for node in nodes:
        modules = node.meta.get("nn_module_stack")
        paths.append(module_path([*modules.values()][-1][0]) if modules else ())
    common = min(paths, key=len, default=())
    while any(path[: len(common)] != common for path in paths):
        common = common[:-1]
    return common
