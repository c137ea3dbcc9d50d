"""What the ranks of one model tell each other before they decide: sums of what they observe, and their votes.

A model that is spread over ranks communicates in its blocks: a rank that skips them leaves another that computes them
waiting for ever. So they decide as one. What each observes of its shard is summed, and nothing is reused that one of
them would compute. Both are asked in every call: what the host knows can differ from rank to rank.

``groups`` are names of process groups, one after the other: over the groups of a mesh the sum is that over all of its
ranks. Where all ranks observe the same, as with tensor parallelism, every sum grows alike and ratios stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def summed(
    observed: Tensor | None, grams: Sequence[Tensor], groups: Sequence[str]
) -> tuple[Tensor | None, Sequence[Tensor]]:
    """Return what is observed and the grams as float64, summed over the ranks, which all have to come here."""
    parts = [*grams, *([] if observed is None else [observed])]
    if not parts:
        return None, grams
    flat = torch.cat([part.reshape(-1).double() for part in parts])
    for group in groups:
        dist.all_reduce(flat, group=_group(group))
    pieces = flat.split([part.numel() for part in parts])
    sums = [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]
    return None if observed is None else sums.pop(), sums


def unanimous(votes: Sequence[bool], groups: Sequence[str], device: torch.device) -> list[bool]:
    """Return for which of the votes every rank has voted yes."""
    ballot = torch.tensor(votes, dtype=torch.int32, device=device)
    for group in groups:
        dist.all_reduce(ballot, op=dist.ReduceOp.MIN, group=_group(group))
    return [bool(vote) for vote in ballot.tolist()]


def _group(name: str) -> dist.ProcessGroup:
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]  # a str by another name
