"""Pass: blocks of one structure become one submodule, called once per block with the weights of each."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_symbols
from torch.utils._pytree import tree_flatten

from fxcache.regions.dataflow import is_half, is_impure, is_view, operands_of, size_inputs, tensor_of, value_of
from fxcache.regions.trunk import Trunk
from fxcache.rewrite.borders import conform_layout, own_memory
from fxcache.rewrite.pin_layouts import settle_layout
from fxcache.rewrite.plan import Plan, convert, facts_of, fake_mode_of

SHARED = "fxcache_block"
_MARK = "fxcache_block"
_WEIGHT = "fxcache_weight"


def mark_blocks(trunk: Trunk, parameters: Collection[Node]) -> None:
    """Number the blocks on their nodes, and mark the inputs that hold weights; copies of the nodes keep the marks."""
    for node in parameters:
        node.meta[_WEIGHT] = True
    for number, block in enumerate([*trunk.side_blocks, *trunk.blocks]):
        for node in block.nodes:
            node.meta[_MARK] = number


def share_blocks(gm: GraphModule, _: Plan | None = None) -> int:
    """Outline marked blocks of one structure into a submodule of their graph; return the number of calls.

    Before::

        a = mm(x, w0);  x1 = add(x, a);  b = mm(x1, w1);  x2 = add(x1, b)

    after::

        x1 = invoke_subgraph(fxcache_block_0, ..., x, w0)[0];  x2 = invoke_subgraph(fxcache_block_0, ..., x1, w1)[0]
        fxcache_block_0(x, w): a = mm(x, w);  return (add(x, a),)

    Inductor lowers, schedules and generates a submodule once however often it is called, so compile time grows with
    the number of distinct blocks.  Graphs of branches are treated like the outer one, each for itself.
    """
    calls = 0
    for graph_module in [gm, *(child for _, child in gm.named_children() if isinstance(child, GraphModule))]:
        groups: dict[Any, list[_Block]] = {}
        _hand_over_views(graph_module.graph)
        for block in _blocks(graph_module.graph):
            groups.setdefault(block.structure, []).append(block)
        repeated = [group for group in map(_alike, groups.values()) if len(group) > 1]
        for number, group in enumerate(repeated):
            _share(graph_module, group, f"{SHARED}_{number}")
            calls += len(group)
        if repeated:
            graph_module.graph.lint()
    return calls


def _hand_over_views(graph: Graph) -> None:
    """Let every block take views of other blocks' values for itself: what leaves a submodule has to own its memory."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    for node in reversed(list(graph.nodes)):
        if _MARK not in node.meta or _source(node) is None:
            continue
        foreign: dict[int | None, list[Node]] = {}
        for user in node.users:
            if user.meta.get(_MARK) != node.meta[_MARK]:
                foreign.setdefault(user.meta.get(_MARK), []).append(user)
        for mark, users in foreign.items():
            first = min(users, key=position.__getitem__)
            with graph.inserting_before(first):
                copy = graph.node_copy(node, lambda arg: arg)
            position[copy] = position[first]
            copy.meta = unmarked(node) if mark is None else {**node.meta, _MARK: mark}
            for user in users:
                user.replace_input_with(node, copy)
        if not node.users:
            graph.erase_node(node)


def _source(node: Node) -> Node | None:
    """What the node is a view of; None where it owns its memory."""
    if not is_view(node) or not node.args or not isinstance(node.args[0], Node):
        return None
    source = node.args[0]
    # a member of what an operator with several results gives owns its memory, a member of a split does not
    return None if node.target is operator.getitem and not is_view(source) else source


@dataclass
class _Block:
    """One block cut out: its nodes in execution order, and which of them others read."""

    nodes: list[Node]
    outputs: set[int]
    """Positions in `nodes`."""
    sizes: list[Node]
    """Inputs of the graph that hold dynamic sizes which the block computes with."""
    structure: Any


def _blocks(graph: Graph) -> Iterator[_Block]:
    order = list(graph.nodes)
    position = {node: i for i, node in enumerate(order)}
    marked: dict[int, list[Node]] = {}
    for node in order:
        if _MARK in node.meta and node.op == "call_function":
            marked.setdefault(node.meta[_MARK], []).append(node)
    sizes = size_inputs(graph)
    for nodes in marked.values():
        block = _cut_out(nodes, order[position[nodes[0]] : position[nodes[-1]] + 1], sizes)
        if block is not None:
            yield block


def _cut_out(marked: list[Node], span: list[Node], sizes: Mapping[Any, Node]) -> _Block | None:
    """A block and what lies between its parts; None if one call cannot stand for it."""
    members, number = set(marked), marked[0].meta[_MARK]
    dependent = _dependent(span, members)
    for node in reversed(span):
        if node in dependent and any(user in members for user in node.users):
            members.add(node)
    if any(is_impure(node) for node in span) or any(node.meta.get(_MARK, number) != number for node in members):
        return None
    if any(node.meta.get("unbacked_bindings") for node in members):
        return None  # a size that is read off data has a name of its own in every block
    nodes = [node for node in span if node in members]
    outputs = {i for i, node in enumerate(nodes) if any(user not in members for user in node.users)}
    if not outputs or not all(tensor_of(nodes[i]) is not None for i in outputs):
        return None
    operands = operands_of(nodes)
    if not all(isinstance(value_of(node), (torch.Tensor, torch.SymInt)) for node in operands):
        return None
    symbols = free_symbols([value_of(node) for node in (*operands, *nodes)])
    if not symbols <= sizes.keys():
        return None
    read = [sizes[symbol] for symbol in sorted(symbols, key=str) if sizes[symbol] not in operands]
    return _Block(nodes, outputs, read, (*_structure(nodes, operands), tuple(read)))


def _dependent(span: Iterable[Node], members: Collection[Node]) -> set[Node]:
    """Nodes of the span that need a value of the members, and the members."""
    found = set(members)
    for node in span:
        if any(arg in found for arg in node.all_input_nodes):
            found.add(node)
    return found


def _alike(group: list[_Block]) -> list[_Block]:
    """The group without its first block if that reads its streams from what is no block.

    Inductor may give such a value (patches behind a convolution) another layout than the results of blocks. Only the
    later blocks agree with each other then, and reductions that run in another order differ in the last bits.
    """
    if len(group) < 2:
        return group
    pairs = zip(operands_of(group[0].nodes), operands_of(group[1].nodes), strict=True)
    streams = [first for first, second in pairs if first is not second and _WEIGHT not in first.meta]
    return group if all(_MARK in node.meta for node in streams) else group[1:]


def _structure(nodes: list[Node], operands: list[Node]) -> Any:
    """What two blocks must have in common to be computed by the same code."""
    names: dict[Node, Any] = {node: ("operand", i) for i, node in enumerate(operands)}
    steps = []
    for i, node in enumerate(nodes):
        flat, spec = tree_flatten((node.args, node.kwargs))
        leaves = tuple(names[leaf] if isinstance(leaf, Node) else (type(leaf), repr(leaf)) for leaf in flat)
        steps.append((node.target, spec, leaves))
        names[node] = ("node", i)
    return (tuple(map(_operand_kind, operands)), tuple(steps))


def _operand_kind(node: Node) -> Any:
    value = value_of(node)
    if not isinstance(value, torch.Tensor):
        return str(value)
    sizes = tuple(map(str, (*value.shape, *value.stride(), value.storage_offset())))
    return (sizes, value.dtype, value.device, _WEIGHT in node.meta)


def _share(gm: GraphModule, group: Sequence[_Block], name: str) -> None:
    template = group[0]
    read = operands_of(template.nodes)
    outputs = sorted(set().union(*(block.outputs for block in group)))
    pairs = zip(read, operands_of(group[1].nodes), strict=True)
    # what passes from block to block in half precision is not rounded on the way: Inductor would not do so either
    wide = {i for i, (one, other) in enumerate(pairs) if one is not other and is_half(one) and _WEIGHT not in one.meta}
    body = Graph()
    inside: dict[Node, Node] = {}
    for i, node in enumerate([*read, *template.sizes]):
        inside[node] = body.placeholder(f"operand_{i}")
        inside[node].meta = facts_of(node)
    for i, node in enumerate(read):
        if i in wide:
            given = inside[node]
            given.meta["val"] = _widened(node)
            inside[node] = convert(body, given, node.meta["val"].dtype)
    for node in template.nodes:
        inside[node] = body.node_copy(node, inside.__getitem__)
    results = []
    for i in outputs:
        node = inside[template.nodes[i]]
        node = convert(body, node, torch.float32) if is_half(node) else node
        results.append(body.call_function(own_memory, (node,)))
        results[-1].meta = dict(node.meta)
    body.output(tuple(results))
    gm.add_submodule(name, GraphModule(torch.nn.Module(), body))
    calls = _Calls(gm, name, outputs, wide)
    for block in group:
        calls.replace(block)


@dataclass
class _Calls:
    """The calls of one submodule, made one after the other."""

    gm: GraphModule
    name: str
    outputs: list[int]
    wide: set[int]
    """Places of the operands that cross in float32."""
    models: list[Node] = field(default_factory=list)
    """Operands of the first call, whose layout those of later calls have to have."""
    widened: dict[Node, Node] = field(default_factory=dict)
    """By half-precision value: the float32 result of a call that it is made of."""

    def replace(self, block: _Block) -> None:
        """Put a call in the place of a block; leave the block if another call has come between parts of it."""
        graph, last = self.gm.graph, block.nodes[-1]
        span = list(itertools.takewhile(lambda node: node is not last, _from(block.nodes[0])))
        members = set(block.nodes)
        dependent = _dependent(span, members)
        later = [node for node in span if node in dependent and node not in members]
        if any(user in members for node in later for user in node.users):
            return
        with graph.inserting_before(last.next):
            attribute = graph.get_attr(self.name)
            operands = [self._operand(i, node) for i, node in enumerate(operands_of(block.nodes))]
            arguments: tuple[Any, ...] = (attribute, self.name, *operands, *block.sizes)
            anchor = made = graph.call_function(torch.ops.higher_order.invoke_subgraph, arguments)
        made.meta = unmarked(last)
        made.meta["val"] = tuple(_widened(block.nodes[i]) for i in self.outputs)
        for member, i in enumerate(self.outputs):
            node = block.nodes[i]
            with graph.inserting_after(anchor):
                out = anchor = graph.call_function(operator.getitem, (made, member))
            out.meta = {**unmarked(node), "val": made.meta["val"][member]}
            if is_half(node):
                with graph.inserting_after(out):
                    anchor = convert(graph, out, node.meta["val"].dtype)
                anchor.meta = unmarked(node)
                self.widened[anchor] = out
            node.replace_all_uses_with(anchor)
        for node in later:
            anchor.append(node)
            anchor = node
        for node in reversed(block.nodes):
            graph.erase_node(node)
        self.models = self.models or operands

    def _operand(self, place: int, node: Node) -> Node:
        graph = self.gm.graph
        if tensor_of(node) is None or _WEIGHT in node.meta:
            return node
        if place in self.wide:
            node = self.widened.get(node) or convert(graph, node, torch.float32)
        if self.models:
            operand = graph.call_function(conform_layout, (node, self.models[place]))
        else:
            operand = graph.call_function(settle_layout, (node,))
        operand.meta = unmarked(node)
        return operand


def _widened(node: Node) -> Any:
    """Fake value of a node, in float32 where it has half precision."""
    value = node.meta["val"]
    if not is_half(node):
        return value
    with fake_mode_of([value]):
        return value.to(torch.float32)


def _from(node: Node) -> Iterator[Node]:
    while True:
        yield node
        node = node.next


def unmarked(node: Node) -> dict[str, Any]:
    """What is known of a value, without the marks of its block and of weights."""
    return {key: value for key, value in facts_of(node).items() if key not in (_MARK, _WEIGHT)}
