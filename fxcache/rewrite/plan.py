"""What the passes hand from one to the next: the region, the state it needs, and the nodes made so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from fxcache.options import Options
from fxcache.regions.region import Region


@dataclass(frozen=True)
class StateTensor:
    """One tensor kept from call to call; its sizes may be expressions over the graph's symbols."""

    name: str
    shape: tuple[int | torch.SymInt, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class History:
    """Where one value is stored: a tensor of one or more entries, and a row of the health."""

    spec: StateTensor
    row: int
    predicted: bool = False
    """Whether the calibrator combines its entries; if not, there is one, and it is reused."""
    gram: StateTensor | None = None
    """Scalar products of the entries, where the calibrator needs them."""
    main: bool = False
    """Whether the indicator belongs to the same stream."""
    absolute: bool = False
    """Whether the stream itself is stored, although there is a value to cache it against."""


@dataclass
class Plan:
    """Region and options of one rewrite, filled in by the passes in their order."""

    region: Region
    options: Options
    unit: int | None = None
    """Number of the unit, where the trunk has several."""
    groups: tuple[str, ...] = ()
    """Process groups that decide as one, because the model communicates in them."""
    references: list[Node | None] = field(default_factory=list)
    """Per stream: the node in front of the middle that it is cached against."""
    indicator_out: Node | None = None
    indicator_in: Node | None = None
    outputs: list[Node] = field(default_factory=list)
    """Per stream: what stands for the live-out behind the middle."""
    compute: Node | None = None
    """The call of the outlined middle, later the branch."""
    reference: History | None = None
    """Of the indicator; None when no step needs one."""
    change: tuple[StateTensor, ...] = ()
    """Output and input of the trunk at the last computed step, and how far they had moved; empty if nobody asks."""
    caches: list[History] = field(default_factory=list)
    """One per stream."""
    placeholders: dict[str, Node] = field(default_factory=dict)
    """Inputs added to the graph, by name, in order: control, health, clock, then the state tensors."""
    reuse: Node | None = None
    slot: Node | None = None
    """Where a history of several entries stores this step, or -1; `first`: where one of one entry does."""
    first: Node | None = None
    sizes: dict[str, Node] = field(default_factory=dict)
    """Sizes of the state that only the running graph knows, by expression: where they are read."""
    weights: Node | None = None
    """Of the forecast, by slot; one row, or one per predicted stream."""

    @property
    def prefix(self) -> str:
        """Beginning of the names of what belongs to this unit alone."""
        return "" if self.unit is None else f"unit_{self.unit}_"

    @property
    def bases(self) -> list[Node | None]:
        """Per stream: what its stored values are added to; None where they are the stream itself."""
        pairs = zip(self.references, self.caches, strict=True)
        return [None if cache.absolute else reference for reference, cache in pairs]

    @property
    def histories(self) -> list[History]:
        """All of them, in the order of their rows."""
        return [*([] if self.reference is None else [self.reference]), *self.caches]

    @property
    def with_gram(self) -> list[History]:
        """Those with weights of their own, in the order of the rows: the first row is the indicator's forecast too."""
        return sorted((cache for cache in self.caches if cache.gram is not None), key=lambda cache: not cache.main)

    @property
    def state(self) -> list[StateTensor]:
        """Specification of the persistent tensors but for the health."""
        grams = [history.gram for history in self.histories if history.gram is not None]
        return [*(history.spec for history in self.histories), *grams, *self.change]


def convert(graph: torch.fx.Graph, node: Node, dtype: torch.dtype) -> Node:
    """Add a conversion to another dtype, which Inductor computes within a kernel where it can."""
    return call(graph, torch.ops.prims.convert_element_type.default, (node, dtype))


def call(graph: torch.fx.Graph, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Node:
    """Add a call to the graph with its fake value, computed in the fake mode of its inputs."""
    node = graph.call_function(target, args, kwargs or {})
    node.meta["val"] = fake_result(node)
    return node


def facts_of(node: Node) -> dict[str, Any]:
    """What is known of the value of a node, for another node with this value: that one makes no symbols of its own."""
    return {key: value for key, value in node.meta.items() if key != "unbacked_bindings"}


def fake_result(node: Node) -> Any:
    """Fake value of a call, from the fake values of its inputs."""
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    mode = fake_mode_of([n.meta["val"] for n in node.all_input_nodes])
    with mode:
        return node.target(*args, **kwargs)  # type: ignore[operator]


def fake_mode_of(values: list[Any]) -> Any:
    """Fake tensor mode that the values belong to."""
    for value in tree_leaves(values):
        if isinstance(value, torch._subclasses.FakeTensor):
            return value.fake_mode
    raise AssertionError("no fake tensor among the inputs")
