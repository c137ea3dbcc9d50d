"""Choose the trunk among the stacks of a graph: the chain of repeated blocks that does the model's work.

A stack qualifies when its blocks follow from each other (chained), are mostly of one kind (homogeneous) and do real
work (at least two matrix products, convolutions or attentions each). The one with most parameters is the anchor.
Stacks right before or after it join when they carry on the same values: the carry has the same number of elements on
both sides. That joins double and single blocks and leaves refiners and control networks out. Stacks that run in
between are side stacks.

Elements at the ends of a list that are no blocks (an embedding, a norm, a head in one container with them) are left
out. Only where no module list qualifies, numbered attributes and repeated calls of one module are looked at, and more
strictly: all blocks of one kind, and as many elements behind each of them. Where they do not help either, a part of
the graph that repeats itself is.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch.fx import Graph, Node

from fxcache.errors import Refusal
from fxcache.regions.blocks import Block, Stack, find_repeated_calls, find_stacks
from fxcache.regions.dataflow import Flow, heavy_operations, is_float_tensor, is_heavy, numel_hint
from fxcache.regions.repeats import find_repeats

MIN_BLOCKS = 3
"""Fewer repeated blocks than this are no trunk: text refiners in front of a graph break have two."""
_HEAVY_PER_BLOCK = 2
_MAIN_KIND_SHARE = 0.6
_LEVELS = 3


@dataclass
class Trunk:
    """The main blocks in execution order, and the side blocks that run between them."""

    blocks: list[Block]
    side_blocks: list[Block] = field(default_factory=list)
    stacks: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Readable composition, e.g. ``transformer_blocks[4] + single_transformer_blocks[8]``."""
        counts = Counter(block.stack for block in self.blocks)
        return " + ".join(f"{name}[{counts[name]}]" for name in self.stacks)


def find_trunk(graph: Graph, flow: Flow, parameters: Collection[Node], names: Sequence[str] = ()) -> Trunk | Refusal:
    """Find the trunk of an ATen graph.

    ``parameters`` are the placeholders that hold weights. ``names`` restricts the search to stacks with these paths
    (or path endings). Returns a Refusal that says, per stack, what disqualifies it.
    """
    weights = set(parameters)
    problems: dict[str, None] = {}
    for level in range(_LEVELS):
        stacks = _named(find_stacks(flow.nodes, level), names)
        good = _qualified(stacks, flow, problems, guessed=False)
        if good:
            return _assemble(good, stacks, flow, weights)
    for made in (_guesses(flow), _repeats(flow)):
        guesses = []
        for stacks in made:
            stacks = _named(stacks, names)
            good = _qualified(stacks, flow, problems, guessed=not names)
            if good:
                guesses.append((good, stacks))
        if not guesses:
            continue
        good, stacks = max(guesses, key=lambda guess: max(_weight(stack, weights) for stack in guess[0]))
        return _assemble(good, stacks, flow, weights)
    found = list(problems)
    what = f"no stack of repeated blocks named {', '.join(names)}" if names else "no chained stack of repeated blocks"
    if found:
        what += f" (found {'; '.join(found[:6])}{'; ...' if len(found) > 6 else ''})"
    elif not any(node.meta.get("nn_module_stack") for node in flow.nodes):
        what += " (the graph names no modules)"
    return Refusal(what)


def _named(stacks: Iterable[Stack], names: Sequence[str]) -> list[Stack]:
    stacks = [_without_ends(stack) for stack in stacks]
    if not names:
        return stacks
    return [stack for stack in stacks if any(stack.name == n or stack.name.endswith("." + n) for n in names)]


def _guesses(flow: Flow) -> Iterator[list[Stack]]:
    for level in range(_LEVELS):
        yield find_stacks(flow.nodes, level, numbered=True)
    yield find_repeated_calls(flow.nodes, MIN_BLOCKS)


def _repeats(flow: Flow) -> Iterator[list[Stack]]:
    yield find_repeats(flow, MIN_BLOCKS)


def _qualified(stacks: list[Stack], flow: Flow, problems: dict[str, None], *, guessed: bool) -> list[Stack]:
    """Stacks that can be the trunk; what disqualifies the others is added to ``problems``."""
    good = []
    for stack in stacks:
        problem = _disqualified(stack, flow) or (_irregular(stack, flow) if guessed else None)
        if problem is None:
            good.append(stack)
        else:
            name = stack.name or "(model)"
            problems[f"{name}[{len(stack.blocks)}]: {problem}"] = None
    return good


def _without_ends(stack: Stack) -> Stack:
    """The stack without the elements at its ends that are of another kind than most and do no work of a block."""
    main = Counter(block.kind for block in stack.blocks).most_common(1)
    kept = [
        i
        for i, block in enumerate(stack.blocks)
        if block.kind == main[0][0] or heavy_operations(block.nodes) >= _HEAVY_PER_BLOCK
    ]
    return Stack(stack.name, stack.blocks[kept[0] : kept[-1] + 1]) if kept else stack


def _disqualified(stack: Stack, flow: Flow) -> str | None:
    blocks = stack.blocks
    if len(blocks) < MIN_BLOCKS:
        return f"fewer than {MIN_BLOCKS} blocks"
    heavy = sorted(heavy_operations(block.nodes) for block in blocks)
    if heavy[len(heavy) // 2] < _HEAVY_PER_BLOCK:
        return f"fewer than {_HEAVY_PER_BLOCK} matrix products, convolutions or attentions in a block"
    if Counter(block.kind for block in blocks).most_common(1)[0][1] < _MAIN_KIND_SHARE * len(blocks):
        return "blocks of different kinds"
    for before, after in itertools.pairwise(blocks):
        if after.start < before.end:
            return f"{before.label} and {after.label} overlap"
        if not _reaches(before, after, flow):
            return f"{after.label} does not depend on {before.label}"
    return None


def _irregular(stack: Stack, flow: Flow) -> str | None:
    """What tells a guessed stack from a trunk: stages of a pyramid are numbered as well, but they change the size."""
    kinds = {block.kind for block in stack.blocks}
    if len(kinds) > 1 or "" in kinds:
        return "not a list of modules, and blocks of different kinds"
    if len(set(_gap_numels(stack, flow))) > 1:
        return "not a list of modules, and the values between the blocks change their size"
    return None


def _reaches(before: Block, after: Block, flow: Flow) -> bool:
    reached = set(before.nodes)
    targets = set(after.nodes)
    for node in flow.between(before.start, after.end):
        if node in reached:
            continue
        if any(arg in reached for arg in node.all_input_nodes):
            if node in targets:
                return True
            reached.add(node)
    return False


def _weight(stack: Stack, parameters: set[Node]) -> tuple[int, int]:
    used = {arg for block in stack.blocks for node in block.nodes for arg in node.all_input_nodes}
    owned = (node for node in used if node in parameters or node.op == "get_attr")
    return sum(map(numel_hint, owned)), sum(heavy_operations(block.nodes) for block in stack.blocks)


def _assemble(good: list[Stack], stacks: list[Stack], flow: Flow, parameters: set[Node]) -> Trunk:
    anchor = max(good, key=lambda stack: _weight(stack, parameters))
    chain = [anchor]
    for direction in (1, -1):
        while True:
            joined = _neighbour(chain, good, flow, direction)
            if joined is None:
                break
            chain.insert(len(chain) if direction > 0 else 0, joined)
    start, end = chain[0].start, chain[-1].end
    side = [
        block
        for stack in stacks
        if stack not in chain and stack.start < end and stack.end > start
        for block in stack.blocks
        if any(is_heavy(node) for node in block.nodes)
    ]
    return Trunk([block for stack in chain for block in stack.blocks], side, tuple(stack.name for stack in chain))


def _neighbour(chain: list[Stack], good: list[Stack], flow: Flow, direction: int) -> Stack | None:
    """Stack that continues the chain in ``direction`` with a carry of the same size, or None."""
    edge = chain[-1] if direction > 0 else chain[0]
    outside = [
        stack
        for stack in good
        if stack not in chain and (stack.start >= edge.end if direction > 0 else stack.end <= edge.start)
    ]
    if not outside:
        return None
    nearest = min(outside, key=lambda s: s.start) if direction > 0 else max(outside, key=lambda s: s.end)
    first, second = (edge, nearest) if direction > 0 else (nearest, edge)
    if not _reaches(first.blocks[-1], second.blocks[0], flow):
        return None
    return nearest if _carry_numel(first, flow) == _carry_numel(second, flow) else None


def _carry_numel(stack: Stack, flow: Flow) -> int:
    """Elements that pass from block to block inside the stack, at its leanest gap."""
    return min(_gap_numels(stack, flow))


def _gap_numels(stack: Stack, flow: Flow) -> list[int]:
    """Elements that pass from each block to the next, where the fewest are alive."""
    dependent = flow.depends_on(stack.blocks[0].nodes)
    return [
        min(
            flow.live_numel(cut, lambda node: node in dependent and is_float_tensor(node))
            for cut in range(before.end, after.start + 1)
        )
        for before, after in itertools.pairwise(stack.blocks)
    ]
