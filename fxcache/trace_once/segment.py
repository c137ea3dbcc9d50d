"""What the trace of one block has left in Dynamo's graph, and copies of it for other blocks."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dynamo.source import TensorPropertySource
from torch._dynamo.variables.base import ValueMutationNew, VariableTracker
from torch._dynamo.variables.builder import VariableBuilder, wrap_fx_proxy
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.lists import ListVariable, TupleVariable
from torch._dynamo.variables.tensor import TensorVariable
from torch._guards import Source
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from fxcache.trace_once.compare import Leaf, Unlike, begins_at, tensor_facts

_FEW = 8
"""Nodes that are traced as fast as they are copied."""
_CONTAINER = re.compile(r"\._(?:modules|parameters|buffers)\[(['\"])([^'\"\]]+)\1\]")


@dataclass(frozen=True)
class Hint:
    """What code that is traced calls a value; Dynamo names the node after it."""

    after: fx.Node
    """The last one of the graph at that time."""
    node: fx.Node
    name: str
    is_first: bool
    """Whether the node was named for it."""


@dataclass(frozen=True)
class Segment:
    """Nodes that a call has added to the graph, and where what they read comes from."""

    nodes: tuple[fx.Node, ...]
    arguments: Mapping[fx.Node, int]
    """Which leaf of the arguments a node outside is."""
    sources: Mapping[fx.Node, Source]
    """Where in the block an input of the graph was read."""
    result: VariableTracker
    outer: int
    """How many modules were being called around the block."""
    path: str
    calls: Mapping[str, tuple[int, int]]
    """How often the modules under a path had been called before, and have been in the block."""
    hints: Sequence[Hint]
    named: Collection[fx.Node]
    """Those of the result that will keep their names."""


def path_of(source: Source) -> str:
    """Return the path of a module as Dynamo notes it at the nodes."""
    return _CONTAINER.sub(r".\2", str(source.name))


def last_node(graph: fx.Graph) -> fx.Node:
    """Return the node that the next one will stand behind."""
    return next(iter(reversed(graph.nodes)), graph._root)


@dataclass(frozen=True)
class Mark:
    """Where the graph ended before a call was traced."""

    last: fx.Node
    calls: Mapping[str, int]
    hints: int


def mark(tx: Any, hints: Sequence[Hint]) -> Mark:
    """Note where the graph ends, before a call is traced."""
    return Mark(last_node(tx.output.graph), dict(tx.num_calls), len(hints))


def cut(
    tx: Any, before: Mark, start: Source, leaves: Sequence[Leaf], result: VariableTracker, hints: Sequence[Hint]
) -> Segment:
    """Return what has been added to the graph since `mark`; raises Unlike if it cannot be copied."""
    last, calls = before.last, before.calls
    nodes: list[fx.Node] = []
    node = last.next
    while node.op != "root":
        if node.op != "placeholder":
            nodes.append(node)
        node = node.next
    if len(nodes) < _FEW:
        raise Unlike(f"{len(nodes)} nodes only")
    arguments: dict[fx.Node, int] = {}
    for number, leaf in enumerate(leaf for leaf in leaves if not leaf.is_unread):
        if leaf.node is not None:
            arguments.setdefault(leaf.node, number)
    inside, sources = set(nodes), dict[fx.Node, Source]()
    for node in nodes:
        if node.op not in ("call_function", "call_method"):
            raise Unlike(f"{node.op} {node}")
        value = node.meta.get("example_value")
        if "unbacked_bindings" in node.meta or free_unbacked_symbols(value):
            raise Unlike(f"{node}: a size that depends on data")
        for read in node.all_input_nodes:
            if read in inside or read in arguments or read in sources:
                continue
            source = _source(read)
            if source is not None and begins_at(source, start):
                if read.meta["grapharg"].pass_arg_as_tensor:
                    # guards on it stand in no list: they are conditions on its symbol
                    raise Unlike(f"{read} is a number that may change")
                sources[read] = source
            elif not _is_size(read):
                raise Unlike(f"{node} reads {read}, which is neither handed over nor of the block")
    # inputs are made in the order in which the code reads them
    sources = {node: sources[node] for node in tx.output.graph.find_nodes(op="placeholder") if node in sources}
    handed = {id(leaf.variable) for leaf in leaves}
    named = set[fx.Node]()

    def check(output: TensorVariable) -> TensorVariable:
        if output._is_name_set:
            named.add(output.as_proxy().node)
        return _check_output(output, inside, arguments)

    _rebuild(result, check, handed)
    delta = {path: (calls.get(path, 0), count) for path, count in tx.num_calls.items() if count != calls.get(path, 0)}
    found = tuple(
        hint
        for hint in hints[before.hints :]
        if hint.node in arguments or (hint.node in inside and hint.is_first)  # later ones change nothing
    )
    outer, path = len(tx.nn_module_stack), path_of(start)
    return Segment(tuple(nodes), arguments, sources, result, outer, path, delta, found, named)


def _is_size(node: fx.Node) -> bool:
    """Say whether a value is a dynamic size, and not a number that every call draws or reads anew."""
    if not isinstance(node.meta.get("example_value"), torch.SymInt):
        return False
    return node.op == "call_function" or isinstance(_source(node), TensorPropertySource)


def _source(node: fx.Node) -> Source | None:
    argument = node.meta.get("grapharg")
    return None if node.op != "placeholder" or argument is None else argument.source


def _check_output(output: TensorVariable, inside: set[fx.Node], arguments: Mapping[fx.Node, int]) -> TensorVariable:
    node = output.as_proxy().node
    if node in arguments:
        return output
    if node not in inside:
        raise Unlike(f"returns {node}, which it has not computed")
    value = node.meta["example_value"]
    if type(output) is not TensorVariable or type(value) is not torch._subclasses.FakeTensor:
        raise Unlike(f"returns a {type(output).__name__}")
    tensor_facts(value)
    return output


def _rebuild(
    variable: VariableTracker,
    change: Callable[[TensorVariable], VariableTracker],
    handed: Collection[int] = (),
) -> VariableTracker:
    """Return a result with its tensors changed; raises Unlike for one of another kind, or that was `handed` over."""
    if isinstance(variable, TensorVariable):
        return change(variable)
    if isinstance(variable, ConstantVariable):
        return variable
    for kind in (TupleVariable, ListVariable):
        if type(variable) is kind and id(variable) not in handed:
            return kind([_rebuild(item, change, handed) for item in variable.items], mutation_type=ValueMutationNew())
    raise Unlike(f"returns a {type(variable).__name__}")


@dataclass(frozen=True)
class Place:
    """A call in the place of the one that a segment is of."""

    start: Source
    """Where its module is."""
    leaves: Sequence[Leaf]
    """Those of its arguments that the other call has read."""
    twins: Mapping[int, int]
    """Parts of its module by those of the other, as `id`."""
    move: Callable[[Source], Source]
    read: Callable[[Source], Any]


def paste(tx: Any, segment: Segment, place: Place, hints: list[Hint]) -> VariableTracker:
    """Add a copy of the nodes to the graph, and return what the call gives; `hints` grow by those of the copies."""
    copies: list[fx.Node] = []
    try:
        return _paste(tx, segment, place, hints, copies)
    except Exception as error:
        for copy in reversed(copies):
            tx.output.graph.erase_node(copy)
        raise Unlike(f"copying failed: {error!r}") from error


def _paste(tx: Any, segment: Segment, place: Place, hints: list[Hint], copies: list[fx.Node]) -> VariableTracker:
    output, tracer = tx.output, tx.output.current_tracer
    there: dict[fx.Node, fx.Node] = {}
    for node, number in segment.arguments.items():
        there[node] = place.leaves[number].node  # type: ignore[assignment]
    stacks = _Stacks(tx, segment, path_of(place.start), place.twins)
    for node, source in segment.sources.items():
        moved, inputs = place.move(source), len(tracer.input_name_to_proxy)
        variable = VariableBuilder(tx, moved)(place.read(moved))
        if not isinstance(variable, TensorVariable):
            raise Unlike(f"{moved.name} is a {type(variable).__name__}")
        found = there[node] = variable.as_proxy().node
        if len(tracer.input_name_to_proxy) > inputs:
            found.meta["nn_module_stack"] = stacks.of(node)
            found.stack_trace = node.stack_trace
    given = {leaf.node: leaf.variable for leaf in place.leaves if leaf.node is not None}
    names = _Names(segment, there, given, hints)
    names.follow(None)
    for node in segment.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda read: there.get(read, read))
        copy = there[node] = tracer.create_node(node.op, node.target, args, kwargs)
        copies.append(copy)
        stamp = copy.meta["creation_timestamp"]
        copy.meta = {**node.meta, "nn_module_stack": stacks.of(node), "creation_timestamp": stamp}
        called = node.meta.get("source_fn_stack")
        if called:
            copy.meta["source_fn_stack"] = [*called[:-1], (copy.name, called[-1][1])]
        names.follow(node)

    made: dict[fx.Node, VariableTracker] = {}

    def other(variable: TensorVariable) -> VariableTracker:
        node = variable.as_proxy().node
        if node in segment.arguments:
            return given[there[node]]
        if node not in made:
            del there[node].meta["example_value"]
            example = _like(output.fake_mode, node.meta["example_value"])
            made[node] = wrap_fx_proxy(tx=tx, proxy=tracer.proxy(there[node]), example_value=example)
            made[node]._is_name_set = node in segment.named  # type: ignore[attr-defined]
        return made[node]

    result = _rebuild(segment.result, other)
    stacks.count()
    return result


def _like(mode: Any, value: torch.Tensor) -> torch.Tensor:
    offset = value.storage_offset()
    with mode:
        if isinstance(offset, int) and offset == 0:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        extent = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
        storage = torch.empty(offset + extent + 1, dtype=value.dtype, device=value.device)
        return storage.as_strided(value.shape, value.stride(), offset)


class _Names:
    """Names the copies as Dynamo would have, in the same order, because numbers tell apart what has one name."""

    def __init__(
        self,
        segment: Segment,
        there: Mapping[fx.Node, fx.Node],
        given: Mapping[fx.Node, VariableTracker],
        hints: list[Hint],
    ) -> None:
        self._there, self._given, self._hints = there, given, hints
        inside = set(segment.nodes)
        self._after = defaultdict[fx.Node | None, list[Hint]](list)
        for hint in segment.hints:
            self._after[hint.after if hint.after in inside else None].append(hint)

    def follow(self, node: fx.Node | None) -> None:
        """Do what was done behind a node, or before the first one."""
        for hint in self._after[node]:
            copy = self._there[hint.node]
            if copy in self._given:
                self._given[copy].set_name_hint(hint.name)
                continue
            copy._rename(hint.name)
            self._hints.append(Hint(last_node(copy.graph), copy, hint.name, hint.is_first))


class _Stacks:
    """What Dynamo notes at every node about the modules being called, for a block in the place of another."""

    def __init__(self, tx: Any, segment: Segment, path: str, twins: Mapping[int, int]) -> None:
        self._tx, self._segment, self._path, self._twins = tx, segment, path, twins
        self._outer = dict(tx.nn_module_stack)
        self._before = dict(tx.num_calls)

    def of(self, node: fx.Node) -> dict[str, Any]:
        """Return the modules around a copied node."""
        found = dict(self._outer)
        for key, (path, kind) in list((node.meta.get("nn_module_stack") or {}).items())[self._segment.outer :]:
            whose, _, which = key.partition("@")
            moved = self._moved(path)
            call = int(which or 0) - self._segment.calls.get(path, (0, 0))[0] + self._before.get(moved, 0)
            module = self._twins.get(int(whose), int(whose))
            found[f"{module}@{call}" if call else str(module)] = (moved, kind)
        return found

    def count(self) -> None:
        """Count the calls as tracing would have."""
        for path, (before, after) in self._segment.calls.items():
            moved = self._moved(path)
            self._tx.num_calls[moved] = self._before.get(moved, 0) + after - before

    def _moved(self, path: str) -> str:
        old = self._segment.path
        inside = path == old or (path.startswith(old) and path[len(old)] in ".[")
        return self._path + path[len(old) :] if inside else path
