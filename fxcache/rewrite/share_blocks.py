"""Pass: blocks of one structure become one submodule, called once per block with the weights of each."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._inductor import inductor_prims, ir
from torch._inductor.lowering import register_lowering
from torch._inductor.virtualized import V
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_flatten

from fxcache.regions.dataflow import is_impure, is_view, tensor_of, value_of
from fxcache.regions.trunk import Trunk
from fxcache.rewrite.pin_layouts import settle, settle_layout, with_layout

SHARED = "fxcache_block"
_MARK = "fxcache_block"


def mark_blocks(trunk: Trunk) -> None:
    """Number the blocks on their nodes; copies of the nodes keep the number."""
    for number, block in enumerate([*trunk.side_blocks, *trunk.blocks]):
        for node in block.nodes:
            node.meta[_MARK] = number


def share_blocks(gm: GraphModule) -> int:
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
            groups.setdefault(block.key, []).append(block)
        repeated = [group for group in groups.values() if len(group) > 1]
        for number, group in enumerate(repeated):
            _share(graph_module, group, f"{SHARED}_{number}")
            calls += len(group)
        if repeated:
            graph_module.graph.lint()
            graph_module.recompile()
    return calls


def _hand_over_views(graph: Graph) -> None:
    """Let every block take views of another block's values for itself: what leaves a submodule has to own its memory."""
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
            # a little in front of the user, which the order of what is looked at later has to show
            position[copy] = position[first]
            copy.meta.pop(_MARK)
            if mark is not None:
                copy.meta[_MARK] = mark
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
    """One block cut out: its nodes in execution order, what it reads, what others read of it."""

    nodes: list[Node]
    operands: list[Node]
    outputs: set[int]
    """Positions in `nodes`."""
    later: list[Node]
    """Nodes between the first and the last of the block that need one of its values, and that it does not need."""
    key: Any


def _blocks(graph: Graph) -> Iterator[_Block]:
    order = list(graph.nodes)
    position = {node: i for i, node in enumerate(order)}
    marked: dict[int, list[Node]] = {}
    for node in order:
        if _MARK in node.meta and node.op == "call_function":
            marked.setdefault(node.meta[_MARK], []).append(node)
    for nodes in marked.values():
        block = _cut_out(nodes, order, position)
        if block is not None:
            yield block


def _cut_out(marked: list[Node], order: list[Node], position: dict[Node, int]) -> _Block | None:
    first, last = position[marked[0]], position[marked[-1]]
    span = order[first : last + 1]
    members, dependent = set(marked), set(marked)
    for node in span:
        if any(arg in dependent for arg in node.all_input_nodes):
            dependent.add(node)
    for node in reversed(span):
        if node in dependent and any(user in members for user in node.users):
            members.add(node)
    number = marked[0].meta[_MARK]
    if any(is_impure(node) for node in span) or any(node.meta.get(_MARK, number) != number for node in members):
        return None
    nodes = [node for node in span if node in members]
    operands = _operands(nodes)
    outputs = {i for i, node in enumerate(nodes) if any(user not in members for user in node.users)}
    if not outputs or not all(tensor_of(nodes[i]) is not None for i in outputs):
        return None
    if not all(isinstance(value_of(node), (torch.Tensor, torch.SymInt)) for node in operands):
        return None
    later = [node for node in span if node in dependent and node not in members]
    return _Block(nodes, operands, outputs, later, _structure(nodes, operands))


def _operands(nodes: list[Node]) -> list[Node]:
    """What the nodes read from outside, in the order of first use."""
    members = set(nodes)
    return list(dict.fromkeys(arg for node in nodes for arg in node.all_input_nodes if arg not in members))


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
    return (sizes, value.dtype, value.device)


def _share(gm: GraphModule, group: Sequence[_Block], name: str) -> None:
    template = group[0]
    outputs = sorted(set().union(*(block.outputs for block in group)))
    body = Graph()
    inside: dict[Node, Node] = {}
    for i, node in enumerate(template.operands):
        inside[node] = body.placeholder(f"operand_{i}")
        inside[node].meta = dict(node.meta)
    for node in template.nodes:
        inside[node] = body.node_copy(node, inside.__getitem__)
    results = []
    for i in outputs:
        node = inside[template.nodes[i]]
        results.append(body.call_function(own_memory, (node,)))
        results[-1].meta = dict(node.meta)
    body.output(tuple(results))
    gm.add_submodule(name, GraphModule(torch.nn.Module(), body))
    models: list[Node] = []
    for block in group:
        models = _call(gm, block, name, outputs, models)


def _call(gm: GraphModule, block: _Block, name: str, outputs: list[int], models: list[Node]) -> list[Node]:
    """Replace a block by a call; return its operands, which those of the next call have to resemble in layout."""
    graph = gm.graph
    with graph.inserting_before(block.nodes[-1].next):
        attribute = graph.get_attr(name)
        operands = []
        for i, node in enumerate(_operands(block.nodes)):
            if tensor_of(node) is None or node.op in ("placeholder", "get_attr"):
                operands.append(node)
                continue
            arguments = (node, models[i]) if models else (node,)
            operands.append(graph.call_function(conform_layout if models else settle_layout, arguments))
            operands[-1].meta = dict(node.meta)
        call = graph.call_function(torch.ops.higher_order.invoke_subgraph, (attribute, name, *operands))
        call.meta = {key: value for key, value in block.nodes[-1].meta.items() if key != _MARK}
        call.meta["val"] = tuple(block.nodes[i].meta["val"] for i in outputs)
        anchor = call
        for member, i in enumerate(outputs):
            node = block.nodes[i]
            with graph.inserting_after(anchor):
                out = graph.call_function(operator.getitem, (call, member))
            out.meta = {key: value for key, value in node.meta.items() if key != _MARK}
            node.replace_all_uses_with(out)
            anchor = out
    for node in block.later:
        anchor.append(node)
        anchor = node
    for node in reversed(block.nodes):
        graph.erase_node(node)
    return operands


own_memory = inductor_prims.make_prim(
    "fxcache_own(Tensor input) -> Tensor",
    lambda value: value.clone(),
    doc="The same values, in memory that holds nothing else and a layout that Inductor decides about here.",
)


@register_lowering(own_memory, type_promotion_kind=None)
def _own(value: Any) -> Any:
    """Copy what is part of something larger: Inductor takes what a submodule returns for a buffer, and uses it again."""
    settled = settle(value)
    layout = settled.get_layout()
    if isinstance(layout, ir.NonOwningLayout) or str(layout.offset) != "0" or not _is_whole(settled):
        settled = settle(ir.ExternKernel.copy_input(settled))
    return settled


def _is_whole(value: Any) -> bool:
    return not isinstance(value.data, ir.ReinterpretView)


conform_layout = inductor_prims.make_prim(
    "fxcache_conform(Tensor input, Tensor model) -> Tensor",
    lambda value, model: value.clone(),
    doc="The same values, in the memory layout of another tensor.",
)


@register_lowering(conform_layout, type_promotion_kind=None)
def _conform(value: Any, model: Any) -> Any:
    """Give a value the layout with which the submodule was lowered, at the cost of a copy where it has another."""
    node = V.graph.current_node
    wanted = node.args[1].meta["val"]  # type: ignore[union-attr]
    shaped = ir.ExternKernel.realize_input(ir.ExternKernel.require_exact_strides(value, wanted.stride()))
    layout = shaped.get_layout()
    if str(layout.offset) != str(wanted.storage_offset()):
        # the kernels of the submodule may count on the alignment of the first call
        copied = ir.ExternKernel.require_exact_strides(ir.ExternKernel.copy_input(shaped), wanted.stride())
        shaped = ir.ExternKernel.realize_input(copied)
        layout = shaped.get_layout()
    node.meta["val"] = with_layout(node.meta["val"], layout.stride, layout.offset)
    return ir.TensorBox(shaped)
