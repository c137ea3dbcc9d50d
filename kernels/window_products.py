"""Scalar products of the entries of a history, one row and column at a time as entries are replaced.

    slot <  0:  nothing is read or written
    slot >= 0:  gram[slot, j] = gram[j, slot] = sum( history[slot] * history[j] )     for all j, over all elements

``slot`` is an int64 scalar on the CPU or on the device, ``history`` contiguous [n, *shape] with n <= 8, ``gram``
float64 [n, n] on its device. Products and sums are float64: a fit over a window subtracts nearly equal products.
An entry that is not finite makes its products NaN or Inf and leaves the others alone. Mutates ``gram``.

Bytes moved: ``history`` once. Source: method of snapshots (Sirovich 1987), as exact DMD needs it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxcache.kernels._library import register_operator
from fxcache.kernels._memory import check_apart
from fxcache.kernels.extrapolate import MAX_ENTRIES


def window_products_reference(slot: Tensor, history: Tensor, gram: Tensor) -> None:
    """Write the products of entry ``slot`` with every entry into row and column ``slot`` of ``gram``."""
    index = int(slot.item())
    if index < 0:
        return
    _check(index, history, gram)
    newest = history[index].double()
    products = torch.stack([(newest * entry.double()).sum() for entry in history])
    gram[index] = products
    gram[:, index] = products


def _check(slot: int, history: Tensor, gram: Tensor) -> None:
    entries = history.shape[0]
    if not 1 <= entries <= MAX_ENTRIES:
        raise ValueError(f"history: {entries} entries, allowed are 1 to {MAX_ENTRIES}")
    if slot >= entries:
        raise ValueError(f"slot: {slot}, history has {entries} entries")
    if not history.is_contiguous():
        raise ValueError(f"history: strides {history.stride()} of shape {tuple(history.shape)}, it must be contiguous")
    if gram.shape != (entries, entries) or gram.dtype != torch.float64:
        raise ValueError(f"gram: {gram.dtype} {tuple(gram.shape)}, expected torch.float64 ({entries}, {entries})")
    check_apart({"gram": gram}, {"history": history})


def _fake(slot: Tensor, history: Tensor, gram: Tensor) -> None:
    return None


register_operator(
    "window_products(Tensor slot, Tensor history, Tensor(a!) gram) -> ()", window_products_reference, _fake
)
