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

from fxcache.kernels._forecast import MAX_ENTRIES
from fxcache.kernels._launch import PARTIALS, Launch, elements_per_program, jit, run, runs_triton, tl
from fxcache.kernels._library import register_operator
from fxcache.kernels._memory import check_apart

_COMBINED = 1024


def window_products_reference(slot: Tensor, history: Tensor, gram: Tensor) -> None:
    """Write the products of entry ``slot`` with every entry into row and column ``slot`` of ``gram``."""
    index = int(slot.item())
    if index < 0:
        return
    newest = history[index].double()
    products = torch.stack([(newest * entry.double()).sum() for entry in history])
    gram[index] = products
    gram[:, index] = products


@jit
def multiply_kernel(
    partials_ptr: tl.tensor,
    newest_ptr: tl.tensor,
    history_ptr: tl.tensor,
    slot_ptr: tl.tensor,
    entry_size: tl.tensor,
    ENTRIES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Every program: products of its share of every entry and of the newest, into its column of ``partials``.

    ``partials`` is [n, programs], PADDED the power of two that holds n. With ``slot_ptr`` None ``newest_ptr`` is that
    entry, otherwise entry 0.
    """
    if slot_ptr is not None:
        slot = tl.load(slot_ptr)
        if (slot < 0) | (slot >= ENTRIES):
            return
        newest_ptr += slot * entry_size
    program, programs = tl.program_id(0), tl.num_programs(0)
    o_entry = tl.arange(0, PADDED)
    b_products = tl.zeros([PADDED], tl.float64)
    for block in range(program, tl.cdiv(entry_size, BLOCK), programs):
        o_flat = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        m_flat = o_flat < entry_size
        b_newest = tl.load(newest_ptr + o_flat, mask=m_flat, other=0.0).to(tl.float64)
        p_entry = history_ptr + o_flat
        for entry in tl.static_range(ENTRIES):
            product = tl.sum(b_newest * tl.load(p_entry, mask=m_flat, other=0.0).to(tl.float64))
            b_products += tl.where(o_entry == entry, product, 0.0)
            p_entry += entry_size
    tl.store(partials_ptr + o_entry * programs + program, b_products, mask=o_entry < ENTRIES)


@jit(do_not_specialize=("row_ptr", "column_ptr", "row_stride", "column_stride"))
def add_up_kernel(
    row_ptr: tl.tensor,
    column_ptr: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    partials_ptr: tl.tensor,
    slot_ptr: tl.tensor,
    count: tl.tensor,
    ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per entry: the sum of its row of ``partials`` [n, count], into row and column of the matrix.

    With ``slot_ptr`` None the pointers are those of the slot's row and column already, otherwise of row and column 0.
    """
    if slot_ptr is not None:
        slot = tl.load(slot_ptr)
        if (slot < 0) | (slot >= ENTRIES):
            return
        row_ptr += slot * row_stride
        column_ptr += slot * column_stride
    entry = tl.program_id(0).to(tl.int64)
    b_sum = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        o_part = start + tl.arange(0, BLOCK)
        b_sum += tl.load(partials_ptr + entry * count + o_part, mask=o_part < count, other=0.0)
    product = tl.sum(b_sum)
    tl.store(row_ptr + entry * column_stride, product)
    tl.store(column_ptr + entry * row_stride, product)


def window_products(slot: Tensor, history: Tensor, gram: Tensor) -> None:
    """The operator: the kernels where they run, the reference elsewhere."""
    index = None if slot.is_cuda else int(slot.item())
    if index is not None and index < 0:
        return
    _check(index, history, gram)
    suitable = runs_triton(history) and gram.device == history.device
    if suitable and run("window_products", plan(slot, index, history, gram), history.device):
        return
    window_products_reference(slot, history, gram)


def plan(slot: Tensor, index: int | None, history: Tensor, gram: Tensor) -> list[Launch]:
    """The launches; ``index`` is the slot where the host knows it."""
    entries, place, device_slot = history.shape[0], index or 0, slot if index is None else None
    entry, block = history[place], elements_per_program(gram)
    count = min(-(-entry.numel() // block), PARTIALS)
    partials = torch.empty((entries, count), dtype=torch.float64, device=history.device)
    matrix = (gram[place], gram[:, place], *gram.stride())
    padded = 1 << (entries - 1).bit_length()
    return [
        Launch(
            multiply_kernel,
            count,
            (partials, entry, history, device_slot, entry.numel()),
            {"ENTRIES": entries, "PADDED": padded, "BLOCK": block},
        ),
        Launch(
            add_up_kernel,
            entries,
            (*matrix, partials, device_slot, count),
            {"ENTRIES": entries, "BLOCK": _COMBINED},
        ),
    ]


def _check(slot: int | None, history: Tensor, gram: Tensor) -> None:
    entries = history.shape[0]
    if not 1 <= entries <= MAX_ENTRIES:
        raise ValueError(f"history: {entries} entries, allowed are 1 to {MAX_ENTRIES}")
    if slot is not None and slot >= entries:
        raise ValueError(f"slot: {slot}, history has {entries} entries")
    if not history.is_contiguous():
        raise ValueError(f"history: strides {history.stride()} of shape {tuple(history.shape)}, it must be contiguous")
    if gram.shape != (entries, entries) or gram.dtype != torch.float64:
        raise ValueError(f"gram: {gram.dtype} {tuple(gram.shape)}, expected torch.float64 ({entries}, {entries})")
    check_apart({"gram": gram}, {"history": history})


def _fake(slot: Tensor, history: Tensor, gram: Tensor) -> None:
    return None


register_operator("window_products(Tensor slot, Tensor history, Tensor(a!) gram) -> ()", window_products, _fake)
