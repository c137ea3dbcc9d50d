"""Blocks of one structure in Dynamo's graph become calls of one submodule."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_flatten

from fxcache.dispatch_once.products import trained
from fxcache.regions.dataflow import operands_of

NAME = "fxcache_alike"
CALL = "fxcache_call"
"""Where the number of a call is found in what AOTAutograd hands on of a node (``meta["custom"]``)."""
_LEAST = 8
"""Nodes of a block: a call of fewer costs what it saves."""
_PLAIN = frozenset(
    "torch torch.functional torch.nn.functional torch._C._nn torch._C._linalg torch._C._special torch._C._fft _operator"
    " math builtins".split()
)
"""Modules whose public functions change nothing but, by their names, their first argument."""
_MODES = {
    "_enter_autocast": 1,
    "_exit_autocast": -1,
    "_vmap_increment_nesting": 1,
    "_vmap_decrement_nesting": -1,
}
_IGNORED = frozenset({"_log_api_usage_once", "lazy_load_decompositions"})
_ASSIGNMENTS = {
    getattr(operator, name)
    for name in "iadd iand iconcat ifloordiv ilshift imatmul imod imul ior ipow irshift isub itruediv ixor setitem"
    " delitem".split()
}
_NO_ASSIGNMENTS = {operator.and_, operator.or_, operator.not_, operator.is_}

Stack: TypeAlias = "tuple[tuple[str, Any], ...]"


@dataclass(frozen=True)
class Outlined:
    """A copy of Dynamo's graph with calls in it."""

    gm: GraphModule
    stacks: tuple[Mapping[Stack, Any], ...]
    """By call: where the nodes of its block come from, by where those of the submodule do ("nn_module_stack")."""
    weights: Mapping[str, frozenset[int]]
    """By submodule: the operands that require a gradient."""


def outline(gm: GraphModule) -> Outlined | None:
    """Copy the graph with calls in the places of blocks that are alike; None if there are none.

    Before::

        a = linear(x, w0);  x1 = x + a;  b = linear(x1, w1);  x2 = x1 + b

    after::

        x1 = invoke_subgraph(fxcache_alike_0, ..., x, w0)[0];  x2 = invoke_subgraph(fxcache_alike_0, ..., x1, w1)[0]
        fxcache_alike_0(x, w): a = linear(x, w);  return (x + a,)
    """
    effects = _effects(gm.graph)
    groups = [] if effects is None else list(_repeated(gm.graph, effects))
    if not groups:
        return None
    mine, there = _copied(gm)
    stacks: list[Mapping[Stack, Any]] = []
    weights: dict[str, frozenset[int]] = {}
    for number, group in enumerate(groups):
        name = f"{NAME}_{number}"
        mine.add_submodule(name, _body([there[node] for node in group[0]]))
        values = [node.meta["example_value"] for node in operands_of(group[0])]
        weights[name] = frozenset(i for i, value in enumerate(values) if value.requires_grad)
        for block in group:
            _replace(mine, name, [there[node] for node in block], len(stacks))
            stacks.append(_stacks(group[0], block) or {})
    mine.graph.lint()
    mine.recompile()
    return Outlined(mine, tuple(stacks), weights)


def stack_of(node: Node) -> Stack:
    """Modules that a node comes from, outermost first, each with the call that it was made in."""
    return tuple((node.meta.get("nn_module_stack") or {}).items())


def _copied(gm: GraphModule) -> tuple[GraphModule, dict[Node, Node]]:
    mine, graph = gm.__copy__(), Graph()
    there: dict[Node, Node] = {}
    for node in gm.graph.nodes:
        there[node] = copy = graph.node_copy(node, there.__getitem__)
        if hasattr(node, "_dynamo_source"):
            copy._dynamo_source = node._dynamo_source
    mine.graph = graph
    mine.meta = dict(gm.meta)
    # what Dynamo tells AOTAutograd: where the inputs come from, and which stay where they are
    mine.__dict__.update({name: value for name, value in gm.__dict__.items() if name not in mine.__dict__})
    return mine, there


@dataclass(frozen=True)
class _Effects:
    """What the operators of a graph do but giving a value."""

    in_mode: frozenset[Node]
    """Nodes that change a mode, or are run in another than the graph as a whole: these stay outside of calls."""
    changed: Mapping[Node, Any]
    """By node that writes: the memory that it writes to."""


def _effects(graph: Graph) -> _Effects | None:
    """Find them; None where they are not known, or sizes are dynamic: these are other values within a submodule."""
    depth, in_mode, changed = 0, set(), {}
    for node in graph.nodes:
        if node.op == "placeholder" and not isinstance(node.meta.get("example_value"), torch.Tensor):
            return None
        if node.op not in ("call_function", "call_method"):
            if node.op == "call_module":
                return None
            continue
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        if name in _MODES:
            depth += _MODES[name]
            in_mode.add(node)
        elif depth > 0 or name in _IGNORED or name == "detach":
            in_mode.add(node)
        elif node.meta.get("unbacked_bindings") or not _is_known(node):
            return None
        written = _written(node)
        if written is not None:
            value = written.meta.get("example_value")
            if not isinstance(value, torch.Tensor) or _is_wrapped(value):
                return None
            changed[node] = _memory(value)
    return None if depth else _Effects(frozenset(in_mode), changed)


def _is_known(node: Node) -> bool:
    """Say whether the operator is one that changes no more than `_written` says."""
    target: Any = node.target
    if node.op == "call_method":
        return target not in ("set_", "resize_", "resize_as_")
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable
    if isinstance(target, torch._ops.OpOverloadPacket):
        return not any(getattr(target, name)._schema.is_mutable for name in target.overloads())
    return getattr(target, "__module__", None) in _PLAIN and not target.__name__.startswith("_")


def _written(node: Node) -> Node | None:
    """Which of its arguments the node writes to."""
    if isinstance(node.kwargs.get("out"), Node):
        return node.kwargs["out"]  # type: ignore[return-value]
    target: Any = node.target
    name = target if node.op == "call_method" else target.__name__
    if name.startswith("__"):
        writes = name.startswith(("__i", "__set", "__del")) and name not in ("__invert__", "__index__", "__int__")
    else:
        writes = target in _ASSIGNMENTS or (name.endswith("_") and target not in _NO_ASSIGNMENTS)
    if writes or node.kwargs.get("inplace") or _inplace_by_position(node):
        return node.all_input_nodes[0]
    return None


def _inplace_by_position(node: Node) -> bool:
    if True not in node.args or getattr(node.target, "__module__", None) != "torch.nn.functional":
        return False
    names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    return "inplace" in names and node.args[names.index("inplace") : names.index("inplace") + 1] == (True,)


def _is_wrapped(value: torch.Tensor) -> bool:
    """Say whether a tensor is one of `torch.func`, which has no memory."""
    return torch._C._functorch.is_functorch_wrapped_tensor(value)


def _memory(value: torch.Tensor) -> Any:
    return value.untyped_storage()._cdata


def _repeated(graph: Graph, effects: _Effects) -> Iterator[list[list[Node]]]:
    """Blocks that are alike, the largest ones: calls of modules, from the outside in."""
    runs: list[Sequence[Node]] = [[node for node in graph.nodes if node.op in ("call_function", "call_method")]]
    depth = 0
    while runs:
        # what the graph has between two calls of a module belongs to neither
        inner = [run for outer in runs for run in _calls(outer, depth)]
        runs = [run for run in inner if len(run) >= _LEAST and len(stack_of(run[0])) > depth]
        alike: dict[Any, list[Sequence[Node]]] = {}
        for run in runs:
            alike.setdefault(_structure(run), []).append(run)
        runs = []
        for structure, group in alike.items():
            members = [block for block in group if _stacks(group[0], block) is not None] if structure else []
            within = {node for block in members for node in block}
            outside = {memory for node, memory in effects.changed.items() if node not in within}
            if len(members) > 1 and all(_is_closed(block, effects, outside) for block in members):
                yield [list(block) for block in members]
            else:
                runs += group
        depth += 1


def _calls(nodes: Sequence[Node], depth: int) -> Iterator[list[Node]]:
    for _, run in groupby(nodes, lambda node: stack_of(node)[: depth + 1]):
        yield list(run)


def _is_closed(nodes: Sequence[Node], effects: _Effects, outside: Set[Any]) -> bool:
    """Say whether a block has no effect, and nobody ``outside`` writes to what it takes or gives."""
    if not effects.in_mode.isdisjoint(nodes):
        return False
    taken = {_memory(node.meta["example_value"]) for node in operands_of(nodes)}
    given = {_memory(node.meta["example_value"]) for node in _outputs(nodes)}
    inside = {effects.changed[node] for node in nodes if node in effects.changed}
    return taken.isdisjoint(inside) and outside.isdisjoint(taken | given)


def _outputs(nodes: Sequence[Node]) -> list[Node]:
    members = set(nodes)
    return [node for node in nodes if any(user not in members for user in node.users)]


def _structure(nodes: Sequence[Node]) -> Any:
    """What blocks must have in common to be one submodule; None for a block that cannot be one."""
    operands, outputs = operands_of(nodes), set(_outputs(nodes))
    if not outputs or not all(map(_is_plain_value, [*operands, *outputs])):
        return None
    names: dict[Node, Any] = {node: ("operand", i) for i, node in enumerate(operands)}
    steps = []
    for i, node in enumerate(nodes):
        flat, spec = tree_flatten((node.args, node.kwargs))
        leaves = tuple(names[leaf] if isinstance(leaf, Node) else (type(leaf), repr(leaf)) for leaf in flat)
        steps.append((node.op, node.target, spec, leaves, node in outputs))
        names[node] = ("node", i)
    return tuple(map(_kind, operands)), tuple(steps)


def _is_plain_value(node: Node) -> bool:
    value = node.meta.get("example_value")
    if not isinstance(value, torch.Tensor):
        return False
    is_subclass: bool = is_traceable_wrapper_subclass(value)
    if is_subclass or _is_wrapped(value):
        return False
    return value.layout == torch.strided and not (value.is_conj() or value.is_neg() or value.is_quantized)


def _kind(node: Node) -> Any:
    value = node.meta["example_value"]
    return (
        tuple(value.shape), value.stride(), value.storage_offset(), value.dtype, value.device, value.requires_grad,
        isinstance(value, torch.nn.Parameter),
    )  # fmt: skip


def _stacks(template: Sequence[Node], block: Sequence[Node]) -> dict[Stack, Any] | None:
    """Where the nodes of a block come from, by where those of another do; None where that is not one to one."""
    found: dict[Stack, Any] = {}
    for one, other in zip(template, block, strict=True):
        stack = other.meta.get("nn_module_stack")
        if found.setdefault(stack_of(one), stack) != stack:
            return None
    return found


def _body(nodes: Sequence[Node]) -> GraphModule:
    graph = Graph()
    inside: dict[Node, Node] = {}
    for i, node in enumerate(operands_of(nodes)):
        inside[node] = graph.placeholder(f"operand_{i}")
        inside[node].meta["example_value"] = node.meta["example_value"]
    for node in inside:
        if node.meta["example_value"].requires_grad:
            inside[node] = graph.call_function(trained, (inside[node],))
            inside[node].meta["example_value"] = node.meta["example_value"]
    for node in nodes:
        inside[node] = graph.node_copy(node, inside.__getitem__)
    graph.output(tuple(inside[node] for node in _outputs(nodes)))
    return GraphModule(torch.nn.Module(), graph)


def _replace(gm: GraphModule, name: str, block: Sequence[Node], number: int) -> None:
    graph, members, outputs = gm.graph, set(block), _outputs(block)
    with graph.inserting_before(block[-1].next):
        arguments: tuple[Any, ...] = (graph.get_attr(name), name, *operands_of(block))
        made = graph.call_function(torch.ops.higher_order.invoke_subgraph, arguments)
        made.meta["example_value"] = tuple(node.meta["example_value"] for node in outputs)
        made.meta["custom"] = {CALL: number}
        for i, node in enumerate(outputs):
            result = graph.call_function(operator.getitem, (made, i))
            result.meta = dict(node.meta)
            node.replace_all_uses_with(result, delete_user_cb=lambda user: user not in members)
    for node in reversed(block):
        graph.erase_node(node)
