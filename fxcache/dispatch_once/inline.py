"""What AOTAutograd has made of the calls of a submodule becomes what it would have made of the blocks."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from fxcache.dispatch_once.names import Names, Numbering
from fxcache.dispatch_once.outline import CALL, NAME, Outlined, Stack, stack_of
from fxcache.regions.dataflow import is_impure, is_view, op_name
from fxcache.rewrite.plan import fake_mode_of, fake_result

_INVOKE = torch.ops.higher_order.invoke_subgraph


class Unlike(Exception):
    """The graph is not the one that would have come of all blocks: they have to be traced."""


def inline(gm: GraphModule, outlined: Outlined) -> int:
    """Put copies of the submodules of `outline` in the places of their calls, in place; return their number."""
    bodies: dict[str, _Body] = {}
    stale: dict[Any, Any] = {}
    names, outer, calls = Names(), Numbering(), 0
    for node in list(gm.graph.nodes):
        if node.op == "output":
            break
        if node.target is _INVOKE and str(node.args[1]).startswith(NAME):
            name = node.args[0].target
            if name not in bodies:
                bodies[name] = _Body(getattr(gm, name), outlined.weights[str(node.args[1])])
            number = (node.meta.get("custom") or {}).get(CALL)
            if number is None:
                raise Unlike("a call has lost its number")
            outer.skip(node.name)
            stale.update(bodies[name].put(node, outlined.stacks[number], names))
            calls += 1
        elif node.op == "get_attr" or node.graph is not gm.graph or node._erased:
            outer.skip(node.name)
        else:
            if not stale.keys().isdisjoint(_memory(node)):
                # a view of what a call returned, which is now a view itself
                node.meta["val"] = fake_result(node)
            if node.op == "call_function":
                names.follow(node, node.name, outer)
    for name in bodies:
        gm.delete_submodule(name)
    if any(NAME in str(leaf) for node in gm.graph.nodes for leaf in (node.target, *node.args)):
        raise Unlike("a block changes what it is given")
    names.give(gm.graph)
    gm.graph.eliminate_dead_code()  # the last block may return what nobody reads
    _check_outputs(gm)
    gm.graph.lint()
    gm.recompile()
    return calls


def _check_outputs(gm: GraphModule) -> None:
    """AOTAutograd treats an output apart that is a view of an input or of another output, and has not seen it."""
    given = {memory for node in gm.graph.find_nodes(op="placeholder") for memory in _memory(node)}
    (output,) = gm.graph.find_nodes(op="output")
    returned = Counter(memory for node in output.all_input_nodes for memory in _memory(node))
    if given & returned.keys() or any(number > 1 for number in returned.values()):
        raise Unlike("outputs share memory with inputs or with each other")


class _Body:
    """A submodule after AOTAutograd."""

    def __init__(self, gm: GraphModule, weights: Set[int]) -> None:
        self._graph, nodes = gm.graph, list(gm.graph.nodes)
        self._operands = [node for node in nodes if node.op == "placeholder"]
        self._nodes = [node for node in nodes if node.op not in ("placeholder", "output")]
        self._results: list[Any] = list(nodes[-1].args[0])
        odd = [node for node in self._nodes if node.op != "call_function" or is_impure(node)]
        odd += [node for node in self._results if node not in self._nodes]
        if odd:
            raise Unlike(f"a block has effects, or returns what it is given: {odd[0]}")
        trained = {self._operands[i] for i in weights if self._operands[i].meta["val"].dim() <= 2}
        for node in self._nodes:
            if is_view(node) and node.args[0] in trained:
                trained.add(node)
            elif op_name(node) == "bmm" and not trained.isdisjoint(node.all_input_nodes):
                # a weight that requires a gradient would have been multiplied as a matrix
                raise Unlike(f"what a product is computed by depends on gradients: {node}")
        self._made = self._own_memory()
        counted = Counter(memory for node in self._results for memory in _memory(node))
        self._alone = {node for node in self._results if node in self._made and counted[_memory(node)[0]] == 1}
        """Results that share their memory with no other and no operand."""

    def _own_memory(self) -> set[Node]:
        """Nodes whose value is a tensor in memory of its own."""
        known = {memory for node in self._operands for memory in _memory(node)}
        made = set()
        for node in self._nodes:
            value, memory = node.meta["val"], _memory(node)
            if isinstance(value, torch.Tensor) and not value.storage_offset() and known.isdisjoint(memory):
                made.add(node)
            known |= set(memory)
        return made

    def put(self, call: Node, stacks: Mapping[Stack, Any], names: Names) -> dict[Any, Any]:
        """Replace a call by a copy; returns the memory whose place other memory has taken, and what was in it.

        As long as that is kept nothing else can be there.
        """
        there: dict[Node, Node] = {}
        for mine, given in zip(self._operands, call.args[2:], strict=True):
            if not isinstance(given, Node) or _facts(given) != _facts(mine):
                raise Unlike("blocks are given values in different layouts")
            there[mine] = given
        graph, results, numbering = call.graph, {}, Numbering()
        for user in call.users:
            if user.target is not operator.getitem:
                raise Unlike("the results of a block are read as a whole")
            results[self._results[user.args[1]]] = user  # type: ignore[index]
        with fake_mode_of([node.meta["val"] for node in self._operands]), graph.inserting_before(call):
            for node in self._nodes:
                there[node] = copy = graph.node_copy(node, there.__getitem__)
                names.follow(copy, node.name, numbering)
                copy.meta = dict(node.meta)
                if node in self._alone and node in results:
                    copy.meta["val"] = results[node].meta["val"]
                else:
                    copy.meta["val"] = _like(node.meta["val"]) if node in self._made else fake_result(copy)
                if stack_of(node):
                    if stack_of(node) not in stacks:
                        raise Unlike("a node of a block comes from no module of it")
                    copy.meta["nn_module_stack"] = stacks[stack_of(node)]
        names.finish(self._graph, numbering)
        stale: dict[Any, Any] = {}
        for node, user in results.items():
            if _facts(there[node]) != _facts(user):
                raise Unlike("blocks return values in different layouts")
            if node not in self._alone:
                stale.update(dict.fromkeys(_memory(user), user.meta["val"]))
            user.replace_all_uses_with(there[node])
            graph.erase_node(user)
        submodule: Any = call.args[0]
        graph.erase_node(call)
        if not submodule.users:
            graph.erase_node(submodule)
        return stale


def _like(value: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _memory(node: Node) -> list[Any]:
    """What the tensors of a node lie in."""
    leaves = tree_leaves(node.meta.get("val"))
    return [leaf.untyped_storage()._cdata for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _facts(node: Node) -> Any:
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return type(value), value
    # not the offset: a call loses it, and no operator computes anything else for it
    return value.shape, value.stride(), value.dtype, value.device
