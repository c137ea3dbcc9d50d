"""Find, for a value that leaves the middle, the value that entered it on the same residual path.

A block of a transformer adds to a stream: ``h_out = h_in + f(h_in, ...)``. The cached residual of a live-out is its
difference to the stream as it entered the middle, so that a reused step starts from the fresh live-in. The walk goes
back from the live-out: an exit of a block is replaced by its partner, the input of the same block with the same
shape, dtype and the cheapest path of additive operators; glue between blocks (cat, slice, add) is copied; values
from before the middle stay as they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from fxcache.regions.blocks import Block
from fxcache.regions.dataflow import (
    hint,
    is_additive,
    is_heavy,
    is_impure,
    is_view,
    op_name,
    same_kind,
    tensor_of,
    value_of,
)
from fxcache.regions.rolls import cancel, shifts_of

MAX_PARTNER_COST = 1
"""Operators other than additive ones allowed between a block's input and its partner exit; matrix products never are.

Blocks that start with a linear layer over a concatenation (U-shaped skips) have one: identity is a wrong model of
them."""


@dataclass(frozen=True)
class Copy:
    """A glue node to be evaluated again, with some of its inputs replaced."""

    node: Node
    replaced: tuple[tuple[Node, Reference], ...]


Reference = Node | Copy
"""Value available before the middle: a node as it is, or a copy of glue over such values."""


def leaves(reference: Reference) -> set[Node]:
    """Nodes of the original graph that a reference reads."""
    if isinstance(reference, Node):
        return {reference}
    replaced = dict(reference.replaced)
    found: set[Node] = set()
    for arg in reference.node.all_input_nodes:
        found |= leaves(replaced[arg]) if arg in replaced else {arg}
    return found


class ReferenceFinder:
    """Walks from a value back through ``blocks`` until it reaches nodes that are not in ``inside``."""

    def __init__(self, blocks: Sequence[Block], inside: Collection[Node], parameters: Collection[Node]) -> None:
        self._inside = inside
        self._parameters = parameters
        self._block_of: Mapping[Node, Block] = {node: block for block in blocks for node in block.nodes}
        self._found: dict[Node, Reference | None] = {}

    def find(self, node: Node) -> Reference | None:
        """Reference of ``node``, or None when there is no identity path."""
        if node not in self._inside:
            return node
        if node not in self._found:
            self._found[node] = None
            block = self._block_of.get(node)
            self._found[node] = self._copy_glue(node) if block is None else self._through_block(node, block)
        return self._found[node]

    def _through_block(self, node: Node, block: Block) -> Reference | None:
        for partner in self._partners(node, block):
            if partner in self._inside and self._block_of.get(partner) is block:
                # A view inside the block of a value from outside: functionalisation re-creates views at their use.
                reference = self._copy_views(partner, block)
            else:
                reference = self.find(partner)
            if reference is not None:
                return reference
        return None

    def _copy_glue(self, node: Node) -> Reference | None:
        if node.op != "call_function" or is_heavy(node) or is_impure(node):
            return None
        replaced: list[tuple[Node, Reference]] = []
        missing: list[Node] = []
        for arg in node.all_input_nodes:
            reference = self.find(arg)
            if reference is None:
                missing.append(arg)
            elif reference is not arg:
                replaced.append((arg, reference))
        if missing:
            # A sum with a delta that no identity path reaches (adapters): the stream is the other operand.
            others = [arg for arg in node.all_input_nodes if arg not in missing]
            if op_name(node) == "add" and len(others) == 1 and same_kind(others[0], node):
                return self.find(others[0])
            return None
        return Copy(node, tuple(replaced))

    def _copy_views(self, node: Node, block: Block) -> Reference | None:
        """Reference of a view, or of one of a view, that the block takes of a value from outside."""
        source = node.args[0]
        if isinstance(source, Node) and is_view(source) and self._block_of.get(source) is block:
            reference = self._copy_views(source, block)
            return None if reference is None else Copy(node, ((source, reference),))
        return self._copy_glue(node)

    def _partners(self, exit_node: Node, block: Block) -> list[Node]:
        """Inputs of the block that ``exit_node`` may carry on, cheapest path first."""
        members = set(block.nodes)
        cost: dict[Node, int] = {exit_node: 0}
        path: dict[Node, tuple[Node, ...]] = {exit_node: ()}
        queue: deque[Node] = deque([exit_node])
        done: set[Node] = set()
        candidates: list[Node] = []
        while queue:
            node = queue.popleft()
            if node in done:
                continue
            done.add(node)
            outside = node not in members
            if node is not exit_node and same_kind(node, exit_node) and self._may_enter(node, members):
                candidates.append(node)
            if outside or is_heavy(node):
                continue
            step = 0 if is_additive(node) or shifts_of(node) is not None else 1
            reach = cost[node] + step
            if reach > MAX_PARTNER_COST:
                continue
            # Reversed, because the queue is used from the left: of two summands the first is looked at first.
            for arg in node.all_input_nodes if step else reversed(node.all_input_nodes):
                if arg in self._parameters or not isinstance(value_of(arg), (torch.Tensor, tuple, list)):
                    continue
                if reach < cost.get(arg, MAX_PARTNER_COST + 1):
                    cost[arg], path[arg] = reach, (node, *path[node])
                    (queue.append if step else queue.appendleft)(arg)
        aligned = [c for c in candidates if keeps_place(c, path[c]) and cancel(path[c])]
        return sorted(aligned, key=lambda c: (cost[c], c in members, self._readers(c)))

    def _readers(self, node: Node) -> int:
        """Number of blocks that read the node: a position embedding that every block adds is not the stream."""
        return len({id(self._block_of[user]) for user in node.users if user in self._block_of})

    def _may_enter(self, node: Node, members: Collection[Node]) -> bool:
        if node in self._parameters:
            return False
        while node in members:
            # a rank takes its shard in the block: a split of what enters, and one of the parts
            sources = [arg for arg in node.all_input_nodes if arg in members]
            if not is_view(node) or len(sources) > 1:
                return False
            if not sources:
                return True
            (node,) = sources
        return True


def keeps_place(start: Node, path: Sequence[Node]) -> bool:
    """Say whether ``start`` passes concatenations and slices on ``path`` and comes out as the whole of the last value.

    Text and image streams of equal length have equal shapes; only their places in the joint sequence tell them apart.
    """
    value = tensor_of(start)
    if value is None or not path:
        return True
    low, dim, previous = 0, None, start
    for node, following in zip(path, [*path[1:], None], strict=True):
        name = op_name(node)
        if name in ("cat", "slice", "split", "split_with_sizes"):
            axis = _axis(node, 2 if name.startswith("split") else 1)
            if dim is not None and axis != dim:
                return True
            dim = axis
            if name == "cat":
                low += _offset_in_cat(node, previous, axis)
            elif name == "slice":
                low -= _start(node)
            else:
                low -= _offset_of_part(node, following)
        elif name != "getitem" and dim is not None and is_view(node):
            # After a reshape the position along the axis is no longer known: give the benefit of the doubt.
            return True
        previous = node
    return low == 0


def _offset_in_cat(cat: Node, part: Node, axis: int) -> int:
    parts = cat.args[0]
    offset = 0
    if isinstance(parts, (list, tuple)) and part in parts:
        for before in parts[: parts.index(part)]:
            value = tensor_of(before) if isinstance(before, Node) else None
            offset += hint(value.shape[axis]) if value is not None else 0
    return offset


def _offset_of_part(split: Node, part: Node | None) -> int:
    chosen = part.args[1] if part is not None and op_name(part) == "getitem" else 0
    sizes = split.args[1]
    if not isinstance(chosen, int):
        return 0
    if isinstance(sizes, (list, tuple)):
        return sum(map(_size, sizes[:chosen]))
    return _size(sizes) * chosen


def _axis(node: Node, place: int) -> int:
    axis = node.args[place] if len(node.args) > place else node.kwargs.get("dim", 0)
    value = next((tensor_of(arg) for arg in node.all_input_nodes if tensor_of(arg) is not None), None)
    return axis % value.dim() if isinstance(axis, int) and value is not None else 0


def _size(size: object) -> int:
    value = size.meta.get("val") if isinstance(size, Node) else size
    return hint(value) if isinstance(value, (int, torch.SymInt)) else 0


def _start(node: Node) -> int:
    start = _size(node.args[2]) if len(node.args) > 2 else 0
    if start < 0:
        source = tensor_of(node.args[0]) if isinstance(node.args[0], Node) else None
        return start + (hint(source.shape[_axis(node, 1)]) if source is not None else 0)
    return start
