"""Approximation of a stream on a reused step: the fresh live-in plus what the stored residuals foretell.

    y = live_in + sum_i  coefficients[i] * history[i]

``history`` is contiguous [n, *shape] with n <= 8, newest or oldest first as the coefficients say; ``coefficients`` is
float32 [n] on its device. Without coefficients only ``history[0]`` counts, with factor 1; without ``live_in`` only
the sum. An entry with coefficient 0 is not read: it may hold anything, NaN too. ``live_in`` [*shape] has any strides
and its own dtype; the result is contiguous [*shape] of ``dtype``, by default that of ``history``. Computed in float32
(float64 if an input is), rounded once. A ``history`` that is not floating point can only be copied.

Bytes moved: live_in, the entries whose coefficient is not 0, and the result, once each. Source: the cached residual
is FBCache's (ParaAttention), the weighted sum holds Taylor, Hermite and DMD predictions alike (TaylorSeer).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxcache.kernels._forecast import MAX_ENTRIES
from fxcache.kernels._launch import Launch, elements_per_program, jit, run, runs_triton, tl
from fxcache.kernels._library import register_operator
from fxcache.kernels._tiles import offsets, plan_tiles, tile_numbers


def extrapolate_reference(
    live_in: Tensor | None, history: Tensor, coefficients: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return ``live_in + sum_i coefficients[i] * history[i]`` as a new contiguous tensor."""
    dtype = dtype or history.dtype
    if coefficients is None and live_in is None:
        return history[0].to(dtype, copy=True)
    if coefficients is None and live_in is not None and live_in.dtype == history.dtype == dtype:
        # One addition rounds the same in half precision and in float32-then-round: the operands are exact in both.
        return torch.add(live_in, history[0], out=torch.empty_like(history[0]))
    wide = torch.promote_types(history.dtype, torch.float32)
    if live_in is not None:
        wide = torch.promote_types(wide, live_in.dtype)
    total = history[0].to(wide, copy=True) if coefficients is None else _weighted_sum(history, coefficients, wide)
    if live_in is not None:
        total += live_in
    return total.to(dtype)


def _weighted_sum(history: Tensor, coefficients: Tensor, wide: torch.dtype) -> Tensor:
    total = torch.zeros(history.shape[1:], dtype=wide, device=history.device)
    if coefficients.device.type == "cpu":
        for entry, factor in zip(history, coefficients.tolist(), strict=True):
            if factor != 0.0:
                total.add_(entry, alpha=factor)
        return total
    for entry, factor in zip(history, coefficients.to(wide), strict=True):
        # Selecting by `where` keeps the factors on the device; 0 * NaN would be NaN.
        total += torch.where(factor != 0.0, entry.to(wide) * factor, 0.0)
    return total


@jit
def extrapolate_kernel(
    y_ptr: tl.tensor,
    live_ptr: tl.tensor,
    history_ptr: tl.tensor,
    coefficients_ptr: tl.tensor,
    entry_size: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    rows_1: tl.tensor,
    rows_2: tl.tensor,
    s_0: tl.tensor,
    s_1: tl.tensor,
    s_2: tl.tensor,
    s_3: tl.tensor,
    ENTRIES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """One tile of y; ``live_ptr`` and ``coefficients_ptr`` may be None."""
    o_row, o_column, m_tile = tile_numbers(tl.program_id(0), rows, columns, ROWS, COLUMNS)
    o_flat = o_row * columns + o_column
    p_entry = history_ptr + o_flat
    if coefficients_ptr is None:
        b_y = tl.load(p_entry, mask=m_tile, other=0.0).to(tl.float32)
    else:
        b_y = tl.zeros([ROWS, COLUMNS], tl.float32)
        for entry in tl.static_range(ENTRIES):
            factor = tl.load(coefficients_ptr + entry)
            # A mask that is false everywhere reads nothing, like a branch, and does not hold up the loads behind it.
            m_entry = m_tile & (tl.where(factor != 0.0, 1, 0) > 0)
            b_y += factor * tl.load(p_entry, mask=m_entry, other=0.0).to(tl.float32)
            p_entry += entry_size
    if live_ptr is not None:
        p_live = live_ptr + offsets(o_row, o_column, rows_1, rows_2, s_0, s_1, s_2, s_3)
        b_y = tl.load(p_live, mask=m_tile, other=0.0).to(tl.float32) + b_y
    tl.store(y_ptr + o_flat, b_y.to(y_ptr.dtype.element_ty), mask=m_tile)


def extrapolate(
    live_in: Tensor | None, history: Tensor, coefficients: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """The operator: the kernel where it runs, the reference elsewhere."""
    _check(live_in, history, coefficients)
    if runs_triton(history, live_in, coefficients):
        out = torch.empty(history.shape[1:], dtype=dtype or history.dtype, device=history.device)
        if runs_triton(out) and run("extrapolate", plan(out, live_in, history, coefficients), out.device):
            return out
    return extrapolate_reference(live_in, history, coefficients, dtype)


def plan(out: Tensor, live_in: Tensor | None, history: Tensor, coefficients: Tensor | None) -> list[Launch]:
    """The launch that fills ``out``."""
    tiling, tensors = plan_tiles([live_in, out], elements_per_program(out, live_in, history))
    rows_and_strides = tiling.arguments[:-4]
    return [
        Launch(
            extrapolate_kernel,
            tiling.count,
            (out, tensors[0], history, coefficients, out.numel(), *rows_and_strides),
            {"ENTRIES": 1 if coefficients is None else history.shape[0], **tiling.constants},
        )
    ]


def _check(live_in: Tensor | None, history: Tensor, coefficients: Tensor | None) -> None:
    entries, shape = history.shape[0], history.shape[1:]
    if not 1 <= entries <= MAX_ENTRIES:
        raise ValueError(f"history: {entries} entries, allowed are 1 to {MAX_ENTRIES}")
    if not history.is_contiguous():
        raise ValueError(f"history: strides {history.stride()} of shape {tuple(history.shape)}, it must be contiguous")
    if live_in is not None and live_in.shape != shape:
        raise ValueError(f"live_in: shape {tuple(live_in.shape)}, that of an entry of history is {tuple(shape)}")
    if coefficients is not None and (coefficients.shape != (entries,) or coefficients.dtype != torch.float32):
        raise ValueError(
            f"coefficients: {coefficients.dtype} {tuple(coefficients.shape)}, expected torch.float32 ({entries},)"
        )
    if not history.dtype.is_floating_point and not (entries == 1 and coefficients is None and live_in is None):
        raise ValueError(f"history: {history.dtype} can only be copied: one entry, no coefficients, no live_in")


def _fake(
    live_in: Tensor | None, history: Tensor, coefficients: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    # A size that depends on data is known of the value in the graph, not of what is stored for it.
    shape = history.shape[1:] if live_in is None else live_in.shape
    return torch.empty(shape, dtype=dtype or history.dtype, device=history.device)


register_operator(
    "extrapolate(Tensor? live_in, Tensor history, Tensor? coefficients=None, ScalarType? dtype=None) -> Tensor",
    extrapolate,
    _fake,
)
