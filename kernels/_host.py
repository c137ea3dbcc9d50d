"""What the operators that decide on the host have in common: one transfer, health, ratios, and the way back."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor


def in_one_transfer(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors on the host in float64, brought there together; nothing is touched if there are none."""
    if not parts:
        return []
    flat = torch.cat([part.reshape(-1).double() for part in parts]).cpu()
    pieces = flat.split([part.numel() for part in parts])
    return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]


def healthy_steps(finite: Sequence[Sequence[bool]], slots: Sequence[int], singles: Collection[int]) -> int:
    """Number of newest steps of which everything stored is finite; 0 as soon as the newest is not.

    ``finite`` are rows of the health, ``slots`` those of the stored steps, newest first. Histories of one entry, whose
    rows are ``singles``, hold the newest step in slot 0.
    """
    if not all(finite[row][0] for row in singles):
        return 0
    rings = [row for number, row in enumerate(finite) if number not in singles]
    return next((age for age, slot in enumerate(slots) if not all(ring[slot] for ring in rings)), len(slots))


def relative(numerator: float, denominator: float) -> float:
    """Return the ratio of two sums; 0 / 0 is identical to a reference that is all zero: no difference, not unknown."""
    return 0.0 if numerator == 0.0 == denominator else numerator / denominator if denominator else math.inf


def on_device(weights: Tensor, device: torch.device) -> Tensor:
    """Return the weights on a device, without waiting for it."""
    if device.type == "cpu" or not weights.numel():
        return weights.to(device)
    # from pinned memory the copy is queued, and the host does not wait for it
    return weights.pin_memory().to(device, non_blocking=True)
