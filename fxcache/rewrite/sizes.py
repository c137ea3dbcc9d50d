"""Sizes that only the running graph knows: what is stored with such a size is made after it has been met.

Dynamo keeps a value whose size depends on data (the words that a mask leaves) in the graph as an unbacked symbol. The
size can be read off the value that the stream is cached against, in front of the middle.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from fxcache.errors import Refusal
from fxcache.kernels import MAX_SIZES
from fxcache.options import Options
from fxcache.regions.dataflow import depends_on_data, has_known_size, same_kind, tensor_of
from fxcache.regions.references import Copy
from fxcache.regions.region import Region, Stream
from fxcache.rewrite.plan import Plan, call


def check_sizes(region: Region, options: Options) -> Refusal | None:
    """Return why what would be stored of this region cannot be made in time; None if it can."""
    unknown = [stream for stream in region.streams if not has_known_size(stream.live_out)]
    looked_at = region.indicator.out
    node = looked_at.node if isinstance(looked_at, Copy) else looked_at
    names = [node.name] if options.observes and not has_known_size(node) else []
    names += [stream.live_out.name for stream in unknown if not _readable(stream, options)]
    read = [copy.name for copy in _copied(region) if copy.meta.get("unbacked_bindings")]
    if read:
        return Refusal("a cached value is reached through a number that is read off a tensor", tuple(read))
    if names:
        return Refusal("the size of a cached value depends on data, not on sizes of inputs", tuple(names))
    found = {str(size) for stream in unknown for _, size in _unknown(stream.live_out)}
    if len(found) > MAX_SIZES:
        return Refusal(f"{len(found)} sizes of cached values depend on data, at most {MAX_SIZES} may")
    return None


def read_sizes(gm: GraphModule, plan: Plan) -> None:
    """Read the sizes that depend on data off the values that the streams are cached against."""
    for stream, base in zip(plan.region.streams, plan.bases, strict=True):
        for axis, size in _unknown(stream.live_out):
            if str(size) not in plan.sizes:
                assert base is not None
                plan.sizes[str(size)] = call(gm.graph, torch.ops.aten.sym_size.int, (base, axis))


def as_input(size: int | torch.SymInt, shapes: Any, free: dict[str, torch.SymInt]) -> int | torch.SymInt:
    """Give a size that depends on data a symbol of its own: the state need not have it, and is there before the data.

    ``shapes`` is the shape environment of the graph, ``free`` the symbols given so far, by expression.
    """
    if not depends_on_data(size):
        return size
    if str(size) not in free:
        with shapes.ignore_fresh_unbacked_symbols():
            free[str(size)] = shapes.create_unbacked_symint()
        torch._check(free[str(size)] >= 0)
    return free[str(size)]


def _unknown(node: Node) -> Iterator[tuple[int, object]]:
    value = tensor_of(node)
    assert value is not None
    return ((axis, size) for axis, size in enumerate(value.shape) if depends_on_data(size))


def _copied(region: Region) -> Iterator[Node]:
    """Nodes that references and indicator evaluate once more."""
    indicator = region.indicator
    waiting = [stream.reference for stream in region.streams] + [indicator.out, indicator.inp]
    while waiting:
        reference = waiting.pop()
        if isinstance(reference, Copy):
            yield reference.node
            waiting += [value for _, value in reference.replaced]


def _readable(stream: Stream, options: Options) -> bool:
    reference = stream.reference
    if reference is None or options.prunes or options.estimates_change:
        return False
    if options.forecast and options.calibrator_cache_type == "hidden_states":
        return False
    return same_kind(stream.live_out, reference.node if isinstance(reference, Copy) else reference)
