"""Names for the nodes of a graph in which calls have been replaced: those that all blocks would have got.

Inductor's cache asks for them. AOTAutograd numbers what has one name in the order of tracing, and also numbers what is
not read and does not stay.
"""

from __future__ import annotations

import re
from collections import defaultdict

from torch.fx import Graph, Node
from torch.fx.graph import _illegal_names, _Namespace

_NUMBERED = re.compile(r"(.*?)(?:_(\d+))?$")


class Numbering:
    """Numbers given so far, by name."""

    def __init__(self) -> None:
        self._last = defaultdict[str, int](int)

    def skip(self, name: str) -> tuple[str, int]:
        """Take note of a name; return it without its number, and by how much that is higher than the last one."""
        found = _NUMBERED.match(name)
        assert found is not None
        base, number = found[1], int(found[2] or 0)
        if base not in self._last and base not in _illegal_names:
            self._last[base] = -1
        step = number - self._last[base]
        self._last[base] = number
        return base, step


class Names:
    """The names to be, as one numbering after the other is met."""

    def __init__(self) -> None:
        self._wanted: dict[Node, str] = {}
        self._last: dict[str, int] = {}

    def follow(self, node: Node, name: str, numbering: Numbering) -> None:
        """Let ``node`` have the number that follows, as ``name`` follows in its own numbering."""
        base, step = numbering.skip(name)
        number = self._last.get(base, 0 if base in _illegal_names else -1) + step
        self._last[base] = number
        self._wanted[node] = f"{base}_{number}" if number else base

    def finish(self, graph: Graph, numbering: Numbering) -> None:
        """Count what came last in a graph and did not stay."""
        for base, number in graph._graph_namespace._base_count.items():
            name, step = numbering.skip(f"{base}_{number}" if number else base)
            self._last[name] = self._last.get(name, 0 if name in _illegal_names else -1) + step

    def give(self, graph: Graph) -> None:
        """Rename the nodes; one whose name is taken gets another."""
        namespace = _Namespace()
        for node in graph.nodes:
            node.name = namespace.create_name(self._wanted.get(node, node.name), node)
        graph._graph_namespace = namespace
