"""The middle of the trunk as a region: what it computes, what it reads, what it gives away."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch.fx import Graph, Node

from fxcache.errors import Refusal
from fxcache.regions.cuts import back_cut, front_cut
from fxcache.regions.dataflow import (
    Flow,
    by_size,
    is_float_tensor,
    is_impure,
    tensor_of,
    value_of,
)
from fxcache.regions.entry import entering, first_read
from fxcache.regions.references import Reference, ReferenceFinder, leaves
from fxcache.regions.trunk import Trunk


@dataclass(frozen=True)
class Stream:
    """One value that leaves the middle, and the value it is cached against (None: it is cached as it is)."""

    live_out: Node
    reference: Reference | None

    @property
    def sources(self) -> set[Node]:
        """Nodes that the reference is made of."""
        return set() if self.reference is None else leaves(self.reference)


@dataclass(frozen=True)
class Indicator:
    """What the decision looks at: a stream behind the first blocks, and the same stream in front of them.

    Without first blocks: what the first block reads of it, and nothing.
    """

    out: Reference
    inp: Reference | None
    stream: Node
    """The stream as it enters the middle."""


@dataclass
class Region:
    """Everything the rewrite needs to know; nodes are those of the graph that was searched."""

    trunk: Trunk
    first_blocks: int
    last_blocks: int
    front: int
    """Position of the first node behind the front cut."""
    carry: list[Node]
    middle: list[Node]
    """Nodes that move into the compute branch, in execution order."""
    anchor: Node
    """First of them behind the front cut: what stands for the middle is put in its place."""
    hoisted: list[Node]
    """Nodes between the cuts that need no block and are used later: they stay, in front of the branch."""
    operands: list[Node]
    streams: list[Stream]
    indicator: Indicator

    @property
    def blocks(self) -> range:
        """Numbers of the blocks of the trunk that it holds."""
        return range(self.first_blocks, len(self.trunk.blocks) - self.last_blocks)


def cut_region(
    graph: Graph,
    flow: Flow,
    trunk: Trunk,
    first_blocks: int,
    last_blocks: int,
    parameters: Collection[Node],
    *,
    one_of_many: bool = False,
) -> Region | Refusal:
    """Cut the middle out of the trunk, leaving ``first_blocks`` in front and ``last_blocks`` behind.

    ``one_of_many``: other parts of the trunk are cut out as well. Then nothing of the blocks in front moves into the
    middle, and the indicator is the largest stream as it enters, not what the blocks in front have added to it.
    """
    front, back = front_cut(trunk, first_blocks, flow), back_cut(trunk, last_blocks, flow)
    if front is None or back is None:
        return Refusal("no place to cut the trunk: a tuple of tensors is alive between its blocks")
    if back <= front:
        return Refusal("the middle of the trunk is empty")
    if first_blocks:
        dependent = flow.depends_on(trunk.blocks[0].nodes)
        carry = flow.live(front, lambda node: node in dependent and tensor_of(node) is not None)
    else:
        carry = entering(trunk, flow, parameters)
        if not carry:
            reason = "the first block adds to no value that is computed in front of it"
            return Refusal(f"{reason}: Fn_compute_blocks=0 leaves nothing to cache against", (trunk.blocks[0].label,))
    if not any(is_float_tensor(node) for node in carry):
        return Refusal("no floating-point tensor passes from block to block", (trunk.blocks[first_blocks].label,))
    after_front = flow.depends_on(carry)
    between = list(flow.between(front, back))
    core = [node for node in between if node in after_front]
    inside = set(core)
    live_outs = [node for node in core if flow.last_use[node] >= back]
    wrong = [node for node in live_outs if tensor_of(node) is None]
    if wrong:
        return Refusal("a value that is no tensor leaves the middle", tuple(node.name for node in wrong))
    if not any(is_float_tensor(node) for node in live_outs):
        return Refusal("nothing that the middle computes is used behind it")
    streams = _streams(live_outs, trunk, inside, parameters)
    needed = {leaf for stream in streams for leaf in stream.sources}
    if one_of_many:
        largest = max((node for node in carry if is_float_tensor(node)), key=by_size)
        indicator = Indicator(largest, None, largest)
    elif first_blocks:
        indicator = _indicator(carry, trunk, flow, front, parameters)
    else:
        indicator = Indicator(first_read(carry[0], trunk, inside), None, carry[0])
    needed.update(leaves(indicator.out))
    needed.update(() if indicator.inp is None else leaves(indicator.inp))
    hoisted = _needed_later(between, inside, needed, flow, back)
    behind = _with_helpers(between, inside, hoisted)
    if one_of_many:
        needed |= flow.depends_on(trunk.blocks[0].nodes)
    middle = [*_only_for(behind, flow, front, needed), *behind]
    impure = [node for node in middle if is_impure(node)]
    if impure:
        return Refusal(
            "the middle mutates memory or draws random numbers (is the model in eval mode?)",
            tuple(node.name for node in impure[:4]),
        )
    written = _written_inputs(flow, set(live_outs), parameters)
    if written:
        return Refusal(
            "the blocks write to tensors that are handed to the model, such as keys and values of earlier frames: what "
            "a reused step would have to write is not known",
            tuple(node.name for node in written[:4]),
        )
    members = set(middle)
    operands = [n for n in flow.nodes if n not in members and any(user in members for user in n.users)]
    return Region(
        trunk, first_blocks, last_blocks, front, carry, middle, behind[0], hoisted, operands, streams, indicator
    )


def _written_inputs(flow: Flow, live_outs: Collection[Node], parameters: Collection[Node]) -> list[Node]:
    """Inputs into which the graph copies what leaves the middle; not those of the model, whose every change is seen."""
    found = []
    for node in flow.nodes:
        if is_impure(node) and len(node.all_input_nodes) == 2:
            target, source = node.all_input_nodes
            while source not in live_outs and len(source.all_input_nodes) == 1:
                (source,) = source.all_input_nodes
            if target.op == "placeholder" and target not in parameters and source in live_outs:
                found.append(target)
    return found


def _streams(
    live_outs: list[Node], trunk: Trunk, inside: Collection[Node], parameters: Collection[Node]
) -> list[Stream]:
    finder = ReferenceFinder([*trunk.side_blocks, *trunk.blocks], inside, parameters)
    streams = []
    for node in live_outs:
        reference = finder.find(node) if is_float_tensor(node) else None
        streams.append(Stream(node, reference))
    return streams


def _needed_later(
    between: list[Node], inside: Collection[Node], needed: Collection[Node], flow: Flow, back: int
) -> list[Node]:
    """Nodes between the cuts that do not depend on the carry but are used behind it or by a reference; constants."""
    wanted: set[Node] = set()
    for node in reversed(between):
        if node in inside:
            continue
        # What stands for a constant or for a submodule cannot move into a branch, whose attributes are its own, and
        # what nobody uses (a check of sizes) has to run in any case.
        stays = node.op == "get_attr" or not node.users
        if stays or node in needed or flow.last_use[node] >= back or any(user in wanted for user in node.users):
            wanted.add(node)
    for node in between:
        # A tuple cannot enter a branch: what takes a member out of one that stays in front stays there too.
        taken = any(arg in wanted and isinstance(value_of(arg), (tuple, list)) for arg in node.all_input_nodes)
        if taken and node not in inside:
            wanted.add(node)
    return [node for node in between if node in wanted]


def _with_helpers(between: list[Node], inside: set[Node], hoisted: list[Node]) -> list[Node]:
    """The core, plus what only it needs (modulation of the conditioning): that is not computed on reused steps."""
    kept = set(hoisted)
    return [node for node in between if node in inside or (node not in kept and node.users)]


def _only_for(behind: list[Node], flow: Flow, front: int, needed: Collection[Node]) -> list[Node]:
    """Nodes in front of the cut that only the middle uses: a reused step need not compute them.

    The first blocks of a model with two streams end with the text stream, which only the next blocks read.
    """
    members = set(behind)
    for node in reversed(flow.nodes[:front]):
        wanted = bool(node.users) and all(user in members for user in node.users) and node not in needed
        if wanted and node.op == "call_function" and not is_impure(node):
            members.add(node)
    moved = [node for node in flow.nodes[:front] if node in members]
    # A tuple cannot enter a branch: what takes a member out of one that stays in front stays there too.
    tuples = {node for node in flow.nodes[:front] if node not in members and isinstance(value_of(node), (tuple, list))}
    return [node for node in moved if tuples.isdisjoint(node.all_input_nodes)]


def _indicator(carry: list[Node], trunk: Trunk, flow: Flow, front: int, parameters: Collection[Node]) -> Indicator:
    start = trunk.blocks[0].start
    dependent = flow.depends_on(trunk.blocks[0].nodes)
    inside = {node for node in flow.between(start, front) if node in dependent or node in trunk.blocks[0].nodes}
    finder = ReferenceFinder([*trunk.side_blocks, *trunk.blocks], inside, parameters)
    floats = sorted((node for node in carry if is_float_tensor(node)), key=by_size, reverse=True)
    for node in floats:
        reference = finder.find(node)
        if reference is not None and all(leaf not in inside for leaf in leaves(reference)):
            return Indicator(node, reference, node)
    return Indicator(floats[0], None, floats[0])
