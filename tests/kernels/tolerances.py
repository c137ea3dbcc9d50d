"""How far an operator may be from its float64 reference, per dtype."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

ROUNDED_ONCE = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
"""Relative: computed in float32 or wider and rounded once to the dtype; half a unit in the last place, doubled."""

SUMMED = {torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}
"""Relative, of a sum of absolute values: all terms are exact in float32 or nearly so, pairwise sums stay at 1e-6."""

WEIGHTED = 2.0**-20
"""Relative to the sum of the sizes of all terms: at most nine float32 products and sums, each off by 2**-24."""

PRODUCTS = 1e-13
"""Relative to the product of the norms: float64 products and sums in any order, of the sizes tested here."""

DIFFERENCES = 2.0**-22
"""Relative to the product of the sizes |r| + |h - r|: r and h - r are each rounded to float32, off by 2**-24."""

SHAPES = ((1, 7, 5), (2, 3, 4, 6), (1, 1, 33), (130,), (3, 257), (1, 1), (2, 64, 16))
"""Odd numbers, one row, a last axis that is no power of two, one axis, one element."""

EMPTY = ((0, 4), (2, 0, 8), (3, 0))


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 31 * len(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What an operator has to overwrite."""
    return torch.full(shape, torch.nan, dtype=dtype)


def strided(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """A tensor of this shape whose memory has gaps and another order of the axes."""
    wide = random(*reversed(shape[:-1]), shape[-1] * 2 + 1, dtype=dtype, seed=seed)
    moved = wide.permute(*reversed(range(len(shape) - 1)), len(shape) - 1)
    return moved[..., 1::2][..., : shape[-1]]
