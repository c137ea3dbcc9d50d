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

from fxcache.kernels._library import register_operator

MAX_ENTRIES = 8


def extrapolate_reference(
    live_in: Tensor | None, history: Tensor, coefficients: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return ``live_in + sum_i coefficients[i] * history[i]`` as a new contiguous tensor."""
    _check(live_in, history, coefficients)
    dtype = dtype or history.dtype
    if coefficients is None and live_in is None:
        return history[0].to(dtype, copy=True)
    wide = torch.promote_types(history.dtype, torch.float32)
    if live_in is not None:
        wide = torch.promote_types(wide, live_in.dtype)
    total = history[0].to(wide) if coefficients is None else _weighted_sum(history, coefficients, wide)
    if live_in is not None:
        total = live_in.to(wide) + total
    return total.to(dtype).contiguous()


def _weighted_sum(history: Tensor, coefficients: Tensor, wide: torch.dtype) -> Tensor:
    total = torch.zeros(history.shape[1:], dtype=wide, device=history.device)
    if coefficients.device.type == "cpu":
        for entry, factor in zip(history, coefficients.tolist(), strict=True):
            if factor != 0.0:
                total += entry.to(wide) * factor
        return total
    for entry, factor in zip(history, coefficients.to(wide), strict=True):
        # Selecting by `where` keeps the factors on the device; 0 * NaN would be NaN.
        total += torch.where(factor != 0.0, entry.to(wide) * factor, 0.0)
    return total


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
    return torch.empty(history.shape[1:], dtype=dtype or history.dtype, device=history.device)


register_operator(
    "extrapolate(Tensor? live_in, Tensor history, Tensor? coefficients=None, ScalarType? dtype=None) -> Tensor",
    extrapolate_reference,
    _fake,
)
