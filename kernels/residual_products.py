"""Where the present residual of the first blocks lies among those of the last computed steps.

    r      = out - inp                              (or ``out`` alone when ``inp`` is None)
    v      = ( r,  history[0] - r,  ...,  history[n-1] - r )
    P_ij   = sum( v_i * v_j )                       over all elements, accumulated in float64

The distance of r to any combination of the stored residuals follows from P alone, and so does the nearest one:
`decide` needs no second pass. Taking differences to r first keeps small distances exact. With ``downsample_factor`` k
every k-th channel (last axis) counts. Shapes: ``out``/``inp`` [..., C], ``history`` contiguous [n, ..., ceil(C / k)],
result float64 [n + 1, n + 1]. An entry that is not finite spoils its own row and column only. Bytes moved: out, inp and
history once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxcache.kernels._library import register_operator
from fxcache.kernels.residual_diff import fn_residual


def residual_products_reference(out: Tensor, inp: Tensor | None, history: Tensor, downsample_factor: int = 1) -> Tensor:
    """Return float64 [n + 1, n + 1], the scalar products."""
    residual = fn_residual(out, inp, downsample_factor)
    vectors = [residual.double().flatten(), *((entry - residual).double().flatten() for entry in history)]
    rows = torch.stack([torch.stack([(one * other).sum() for other in vectors]) for one in vectors])
    return rows


def _fake(out: Tensor, inp: Tensor | None, history: Tensor, downsample_factor: int = 1) -> Tensor:
    size = history.shape[0] + 1
    return out.new_empty((size, size), dtype=torch.float64)


register_operator(
    "residual_products(Tensor out, Tensor? inp, Tensor history, int downsample_factor=1) -> Tensor",
    residual_products_reference,
    _fake,
)
