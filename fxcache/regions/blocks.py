"""Find the block of every node, and the stacks of repeated blocks, from ``nn_module_stack``.

Tracing leaves on every node the modules whose ``forward`` was running. The path of the outermost module that ends in
an index (``transformer_blocks.3``) names the block, what stands before the index names the stack. No class name is
looked at. Models without such a list may number their attributes (``block1``, ``block2``), or call one module again
and again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from fxcache.regions.dataflow import is_heavy

_HEAD = re.compile(r"^[LG]\['[^']*'\]")
_TOKEN = re.compile(r"[A-Za-z_]\w*|\d+")
_NUMBERED = re.compile(r"(.*\D)(\d+)")
_DROPPED = frozenset(
    {"__dict__", "__self__", "_modules", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
)


@dataclass(frozen=True)
class Place:
    """Where a node stands: element ``index`` of ``stack``, and whether the element was called as a whole."""

    stack: str
    index: int
    whole: bool
    kind: str
    """Qualified class of the element if it was called as a whole, else an empty string; compared, never interpreted."""
    call: str
    """Identifies the call of the element: Dynamo numbers the calls of one module."""


@dataclass
class Block:
    """One call of one element of a stack: its nodes in execution order, and the span they cover."""

    stack: str
    index: int
    kind: str
    nodes: list[Node] = field(default_factory=list)
    start: int = 0
    """Position of the first node."""
    end: int = 0
    """Position after the last node."""

    @property
    def label(self) -> str:
        """Readable name, e.g. ``transformer_blocks.3``."""
        return f"{self.stack}.{self.index}"


@dataclass
class Stack:
    """The blocks of one module list, in the order in which they ran."""

    name: str
    blocks: list[Block]

    @property
    def start(self) -> int:
        """Position of the first node of the first block."""
        return min(block.start for block in self.blocks)

    @property
    def end(self) -> int:
        """Position after the last node of the last block."""
        return max(block.end for block in self.blocks)


def module_path(path: str) -> tuple[str, ...]:
    """Split a path as Dynamo prints it into attribute names and indices.

    >>> module_path("L['self'].__dict__['_modules']['blocks'].3.attn")
    ('blocks', '3', 'attn')
    """
    return tuple(t for t in _TOKEN.findall(_HEAD.sub("", path)) if t not in _DROPPED)


def split_number(token: str) -> tuple[str, ...]:
    """Split a numbered attribute into name and number.

    >>> split_number("block3"), split_number("norm"), split_number("3")
    (('block', '3'), ('norm',), ('3',))
    """
    found = _NUMBERED.fullmatch(token)
    return (token,) if found is None else found.groups()


def place_of(node: Node, level: int, *, numbered: bool = False) -> Place | None:
    """Place of a node at nesting ``level``: 0 takes the first index of its module path, 1 the second, and so on.

    With ``numbered`` the number at the end of an attribute's name is an index as well.
    """
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return None
    element: tuple[str, ...] | None = None
    for call, (path, kind) in stack.items():
        tokens = module_path(path)
        if numbered:
            tokens = tuple(part for token in tokens for part in split_number(token))
        if element is None:
            digits = [i for i, token in enumerate(tokens) if token.isdigit()]
            if len(digits) <= level:
                continue
            element = tokens[: digits[level] + 1]
        if tokens == element:
            return Place(".".join(element[:-1]), int(element[-1]), True, _class_name(kind), call)
    return None if element is None else Place(".".join(element[:-1]), int(element[-1]), False, "", "")


def _class_name(kind: str | type) -> str:
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def find_stacks(nodes: Sequence[Node], level: int = 0, *, numbered: bool = False) -> list[Stack]:
    """Group the nodes into stacks of blocks; a block that runs twice counts as two blocks.

    ``level`` and ``numbered`` as in `place_of`. Where a stack's elements are called as wholes, nodes of a part of an
    element that is called from elsewhere (a final layer that borrows the norm of block 0) are no part of the stack.
    """
    return _group(nodes, lambda node: place_of(node, level, numbered=numbered))


def find_repeated_calls(nodes: Sequence[Node], least: int) -> list[Stack]:
    """Group the nodes into the calls of modules that are called at least ``least`` times: one block per call.

    Of modules inside each other the outermost such one counts. Dynamo keeps the calls of one module apart by a
    number behind its identity: ``1234``, ``1234@1``, ``1234@2``.
    """
    numbers: dict[str, dict[str, int]] = {}
    names: dict[str, str] = {}
    for node in nodes:
        for call, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            module = call.partition("@")[0]
            of_module = numbers.setdefault(module, {})
            of_module.setdefault(call, len(of_module))
            names.setdefault(module, ".".join(module_path(path)))

    def place(node: Node) -> Place | None:
        for call, (_, kind) in (node.meta.get("nn_module_stack") or {}).items():
            module = call.partition("@")[0]
            if names[module] and len(numbers[module]) >= least:
                return Place(names[module], numbers[module][call], True, _class_name(kind), call)
        return None

    return _group(nodes, place)


def _group(nodes: Sequence[Node], place_of_node: Callable[[Node], Place | None]) -> list[Stack]:
    places = _fill_gaps(nodes, [place_of_node(node) for node in nodes])
    called_whole = {place.stack for place in places if place is not None and place.whole}
    runs: dict[str, list[_Run]] = {}
    for position, (node, place) in enumerate(zip(nodes, places, strict=True)):
        if place is None or (place.stack in called_whole and not place.whole):
            continue
        of_stack = runs.setdefault(place.stack, [])
        if not of_stack or not of_stack[-1].continues(place):
            of_stack.append(_Run(place))
        of_stack[-1].members.append((position, node))
    return [Stack(name, _blocks(_without_strays(of_stack))) for name, of_stack in runs.items()]


@dataclass
class _Run:
    """Nodes of one element that follow each other, as far as nodes of the same stack go."""

    place: Place
    members: list[tuple[int, Node]] = field(default_factory=list)

    def continues(self, place: Place) -> bool:
        return (self.place.index, self.place.call) == (place.index, place.call)


def _without_strays(runs: list[_Run]) -> list[_Run]:
    """Drop runs that only repeat cheap nodes of a block that ran elsewhere: views are re-created where they serve."""
    indices = [run.place.index for run in runs]
    return [
        run for run in runs if indices.count(run.place.index) == 1 or any(is_heavy(node) for _, node in run.members)
    ]


def _blocks(runs: list[_Run]) -> list[Block]:
    blocks: list[Block] = []
    previous: _Run | None = None
    for run in runs:
        if previous is None or not previous.continues(run.place):
            blocks.append(Block(run.place.stack, run.place.index, run.place.kind, start=run.members[0][0]))
        blocks[-1].nodes.extend(node for _, node in run.members)
        blocks[-1].end = run.members[-1][0] + 1
        previous = run
    return blocks


def _same_element(a: Place, b: Place) -> bool:
    return (a.stack, a.index) == (b.stack, b.index)


def _fill_gaps(nodes: Sequence[Node], places: list[Place | None]) -> list[Place | None]:
    """Give a node that lost its module stack to the block in whose midst it stands.

    Inductor's pattern replacements (attention) create such nodes. Nodes of the root module have no stack either, but
    they never stand between two nodes of one block.
    """
    filled = list(places)
    previous: Place | None = None
    gap: list[int] = []
    for position, node in enumerate(nodes):
        if node.op in ("placeholder", "output"):
            continue
        if node.meta.get("nn_module_stack"):
            place = places[position]
            if place is not None and previous is not None and _same_element(place, previous):
                for i in gap:
                    filled[i] = place
            gap, previous = [], place
        else:
            gap.append(position)
    return filled
