"""Pass: functions that Inductor takes anew inside every block stay there on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.fx import Graph, GraphModule, Node

from fxcache.regions.dataflow import is_pointwise, is_view, op_name, value_of
from fxcache.regions.trunk import Trunk

_TAKEN_ANEW = frozenset("sin cos tan asin acos atan atan2 sinh cosh erf erfc exp2 expm1 pow".split())
_MOVES = frozenset("index gather flip repeat constant_pad_nd slice_scatter select_scatter copy _to_copy".split())
_MADE_ANEW = frozenset("iota arange full scalar_tensor zeros ones empty".split())
_KEPT_IF_READ_TWICE = frozenset("exp log log2 log10 log1p sigmoid tanh".split())
"""Inductor stores the result of these, on the CPU, if it is read more than once."""


def keep_inlined(gm: GraphModule, trunk: Trunk) -> int:
    """Copy sines and the like into the blocks that read them, if these are several; return the number of copies.

    Before::

        f = cat(a, b);  c = cos(f);  x1 = block0(x0, c);  x2 = block1(x1, c)

    after::

        f = cat(a, b);  c0 = cos(f);  x1 = block0(x0, c0);  c1 = cos(f);  x2 = block1(x1, c1)

    Inductor would not store c but compute it wherever it is read, and so all that it is made of up to f, which it
    stores.  At a border c would be stored, by a loop of its own, and whether a loop on the CPU can use vectors depends
    on all that it reads: the two forms of a cosine differ in the last bit.
    """
    spread = _Spread(gm.graph, trunk)
    copies = sum(spread.copy_into(number) for number in range(len(spread.blocks)))
    if copies:
        for node in reversed(list(gm.graph.nodes)):
            if node in spread.functions and not node.users:
                gm.graph.erase_node(node)
        gm.graph.lint()
    return copies


@dataclass
class _Spread:
    """What several blocks compute anew."""

    graph: Graph
    trunk: Trunk
    blocks: list[list[Node]] = field(init=False)
    owner: dict[Node, int] = field(init=False)
    functions: dict[Node, frozenset[Node]] = field(init=False)
    """By value that is not stored: the functions that are taken wherever it is read."""
    shared: frozenset[Node] = field(init=False)
    """Functions whose values several blocks read."""

    def __post_init__(self) -> None:
        self.blocks = [block.nodes for block in (*self.trunk.side_blocks, *self.trunk.blocks)]
        self.owner = {node: number for number, nodes in enumerate(self.blocks) for node in nodes}
        self.functions = {}
        for node in self.graph.nodes:
            if _is_inlined(node) and all(arg in self.functions or arg not in self.owner for arg in _args(node)):
                below = frozenset[Node]().union(*(self.functions.get(arg, ()) for arg in _args(node)))
                self.functions[node] = below | {node} if _is_function(node) else below
        readers: dict[Node, set[int]] = {}
        for number in range(len(self.blocks)):
            for _, arg in self._read(number):
                for function in self.functions[arg]:
                    readers.setdefault(function, set()).add(number)
        self.shared = frozenset(function for function, numbers in readers.items() if len(numbers) > 1)

    def _read(self, number: int) -> Iterator[tuple[Node, Node]]:
        """What a block reads from outside that is not stored, by the node that reads it."""
        for node in self.blocks[number]:
            for arg in _args(node):
                if self.owner.get(arg) != number and self.functions.get(arg):
                    yield node, arg

    def copy_into(self, number: int) -> int:
        """Let a block compute for itself what of its operands is made of shared functions."""
        copied: dict[Node, Node] = {}
        for reader, operand in list(self._read(number)):
            if self.functions[operand] & self.shared:
                reader.replace_input_with(operand, self._copy(operand, reader, copied))
        return len(copied)

    def _copy(self, node: Node, reader: Node, copied: dict[Node, Node]) -> Node:
        if node not in copied:
            inputs = {arg: self._copy(arg, reader, copied) for arg in _args(node) if arg in self.functions}
            with self.graph.inserting_before(reader):
                copied[node] = self.graph.node_copy(node, lambda arg: inputs.get(arg, arg))
            copied[node].meta = {**node.meta, "nn_module_stack": reader.meta.get("nn_module_stack")}
            self.functions[copied[node]] = self.functions[node]
            self.owner[copied[node]] = self.owner[reader]
        return copied[node]


def _args(node: Node) -> list[Node]:
    return node.all_input_nodes


def _is_function(node: Node) -> bool:
    return op_name(node) in _TAKEN_ANEW or op_name(node) in _KEPT_IF_READ_TWICE


def _is_inlined(node: Node) -> bool:
    """Say whether Inductor computes a value on the CPU where it is read, and does not store it.

    It stores concatenations, and what is neither a view nor computed element by element.
    """
    value = value_of(node)
    first = next(iter(value), None) if isinstance(value, list | tuple) else value
    if node.op != "call_function" or not isinstance(first, torch.Tensor) or first.device.type != "cpu":
        return False
    if op_name(node) == "getitem":
        return is_view(_args(node)[0])  # only tensors can pass the border of a block, not what they are parts of
    if op_name(node) in _KEPT_IF_READ_TWICE and len(node.users) > 1:
        return False
    if is_view(node) or op_name(node) in _MOVES or op_name(node) in _MADE_ANEW:
        return True
    return is_pointwise(node)
