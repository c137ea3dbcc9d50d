"""What the operators that decide on the host have in common: one transfer, health, ratios, and the way back."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor


def in_one_transfer(parts: Sequence[Tensor]) -> list[list[Any]]:
    """Return vectors and matrices as lists of numbers, brought to the host together; nothing is touched if none.

    A few numbers are quicker to compute with than tensors that hold them, and every reused step waits for that.
    """
    if not parts:
        return []
    flat: list[float] = torch.cat([part.reshape(-1).double() for part in parts]).tolist()
    pieces, begin = [], 0
    for part in parts:
        piece = flat[begin : begin + part.numel()]
        begin += part.numel()
        pieces.append(piece if part.dim() == 1 else _rows(piece, part.shape[-1]))
    return pieces


def _rows(values: list[float], width: int) -> list[list[float]]:
    return [values[begin : begin + width] for begin in range(0, len(values), width)]


def all_finite(rows: Sequence[Sequence[float]]) -> list[list[bool]]:
    """Return which of the numbers are finite."""
    return [[math.isfinite(value) for value in row] for row in rows]


def taken(matrix: Sequence[Sequence[float]], places: Sequence[int]) -> list[list[float]]:
    """Return these rows and columns."""
    return [[matrix[row][column] for column in places] for row in places]


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
