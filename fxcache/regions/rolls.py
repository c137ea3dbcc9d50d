"""Cyclic shifts on a residual path: windows that are shifted for one block and shifted back behind it.

A shift moves every element to another place, so a path with shifts carries a value on only where they cancel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch.fx import Node

from fxcache.regions.dataflow import hint, op_name, shape_hint


def shifts_of(node: Node) -> dict[int, int] | None:
    """Places by which the node shifts its first operand cyclically, by dimension; None where it does another thing.

    Known are ``roll`` and what it is decomposed into, an index ``fmod(iota(size) + shift, size)`` of one dimension.
    """
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    sizes = shape_hint(node.args[0])
    if op_name(node) == "roll":
        shifts, dims = node.args[1], node.args[2] if len(node.args) > 2 else ()
        if not isinstance(shifts, (list, tuple)) or not isinstance(dims, (list, tuple)) or len(shifts) != len(dims):
            return None
        known = [(dim % len(sizes), number_of(shift)) for shift, dim in zip(shifts, dims, strict=True)]
        return None if any(shift is None for _, shift in known) else {dim: shift % sizes[dim] for dim, shift in known}
    if op_name(node) == "index" and isinstance(node.args[1], (list, tuple)):
        taken = [(dim, index) for dim, index in enumerate(node.args[1]) if index is not None]
        shift = _start_of_cycle(taken[0][1], sizes[taken[0][0]]) if len(taken) == 1 else None
        return None if shift is None else {taken[0][0]: -shift % sizes[taken[0][0]]}
    return None


def cancel(path: Sequence[Node]) -> bool:
    """Say whether the shifts along a path leave every element at its place."""
    total: Counter[tuple[tuple[int, ...], int]] = Counter()
    for node in path:
        shifts = shifts_of(node)
        if shifts is None and op_name(node) == "roll":
            return False
        for dim, shift in (shifts or {}).items():
            total[shape_hint(node), dim] += shift
    return all(shift % sizes[dim] == 0 for (sizes, dim), shift in total.items())


def number_of(value: object) -> int | None:
    """Hint of a number that stands in the graph or is computed in it; None for anything else."""
    found = value.meta.get("val") if isinstance(value, Node) else value
    return hint(found) if isinstance(found, (int, torch.SymInt)) else None


def _start_of_cycle(index: object, size: int) -> int | None:
    """First entry of an index that goes once through 0 .. size - 1 cyclically."""
    if not isinstance(index, Node) or op_name(index) != "fmod" or number_of(index.args[1]) != size:
        return None
    moved = index.args[0]
    if not isinstance(moved, Node) or op_name(moved) != "add" or number_of(moved.kwargs.get("alpha", 1)) != 1:
        return None
    line, shift = moved.args
    if not isinstance(line, Node) or op_name(line) != "iota" or number_of(line.args[0]) != size:
        return None
    if (line.kwargs.get("start"), line.kwargs.get("step")) != (0, 1):
        return None
    return number_of(shift)
