"""Approximation of a stream on a reused step: the fresh live-in plus the cached residual.

    y = live_in + cache        (``cache`` itself when the stream is cached as it is, ``live_in`` None)

Computed in float32, rounded once to the dtype of ``cache``. Shapes: ``live_in``, ``cache`` and the result are equal;
the result is contiguous. Bytes moved: two reads, one write.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxcache.kernels._library import register_operator


def extrapolate_reference(live_in: Tensor | None, cache: Tensor) -> Tensor:
    """Return ``live_in + cache`` as a new contiguous tensor (a copy of ``cache`` when ``live_in`` is None)."""
    if live_in is None:
        return cache.clone(memory_format=torch.contiguous_format)
    out = torch.empty(cache.shape, dtype=cache.dtype, device=cache.device)
    # One addition rounds the same in half precision and in float32-then-round: the operands are exact in both.
    return torch.add(live_in, cache, out=out)


def _fake(live_in: Tensor | None, cache: Tensor) -> Tensor:
    return torch.empty(cache.shape, dtype=cache.dtype, device=cache.device)


register_operator("extrapolate(Tensor? live_in, Tensor cache) -> Tensor", extrapolate_reference, _fake)
