"""Indicator of a step: how far the residual of the first blocks has moved since the last computed step.

    r_t   = out - inp                 (or ``out`` alone when ``inp`` is None)
    sums  = ( sum |reference - r_t| , sum |reference| )          over all elements, accumulated in float32
    d_t   = sums[0] / sums[1]                                    the relative difference that the policy compares

With ``downsample_factor`` k every k-th channel (last axis) counts, and ``reference`` holds just these. With
``important_threshold`` c > 0 the tokens (all axes but the last) whose own relative difference exceeds c decide
alone, if there are any. Shapes: ``out``/``inp`` [..., C], ``reference`` float32 [..., ceil(C / k)], result float32
[2]. Bytes moved: out + inp + reference once. Source: FBCache (ParaAttention) and DBCache (cache-dit), which take the
mean; the ratio is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxcache.kernels._library import register_operator


def every_nth(tensor: Tensor, downsample_factor: int) -> Tensor:
    """View of every ``downsample_factor``-th channel, the last axis."""
    return tensor[..., ::downsample_factor] if downsample_factor > 1 else tensor


def fn_residual(out: Tensor, inp: Tensor | None, downsample_factor: int = 1) -> Tensor:
    """Residual ``out - inp`` (``out`` if ``inp`` is None), every ``downsample_factor``-th channel, at least float32."""
    out = every_nth(out, downsample_factor)
    wide = out.to(torch.promote_types(out.dtype, torch.float32))
    return wide if inp is None else wide - every_nth(inp, downsample_factor).to(wide.dtype)


def residual_diff_reference(
    out: Tensor, inp: Tensor | None, reference: Tensor, downsample_factor: int = 1, important_threshold: float = 0.0
) -> Tensor:
    """Return float32 [2]: the sum of absolute differences to ``reference`` and the sum of absolute references."""
    _check(out, inp, reference, downsample_factor)
    difference = (fn_residual(out, inp, downsample_factor) - reference).abs_()
    magnitude = reference.abs()
    if important_threshold > 0.0:
        token_difference, token_magnitude = difference.sum(-1), magnitude.sum(-1)
        # A token that is not finite must decide, or it would stay unnoticed: no comparison with NaN is true.
        important = (token_difference > important_threshold * token_magnitude) | ~token_difference.isfinite()
        # Selecting by `where` keeps the choice on the device: boolean indexing would have to synchronise.
        important = important | ~important.any()
        return torch.stack(
            [torch.where(important, part, 0.0).sum() for part in (token_difference, token_magnitude)]
        ).float()
    return torch.stack([difference.sum(), magnitude.sum()]).float()


def _check(out: Tensor, inp: Tensor | None, reference: Tensor, downsample_factor: int) -> None:
    compared = every_nth(out, downsample_factor).shape
    if reference.shape != compared:
        raise ValueError(f"reference: shape {tuple(reference.shape)}, what is compared is {tuple(compared)}")
    if inp is not None and inp.shape != out.shape:
        raise ValueError(f"inp: shape {tuple(inp.shape)}, that of out is {tuple(out.shape)}")


def _fake(
    out: Tensor, inp: Tensor | None, reference: Tensor, downsample_factor: int = 1, important_threshold: float = 0.0
) -> Tensor:
    return out.new_empty((2,), dtype=torch.float32)


register_operator(
    "residual_diff(Tensor out, Tensor? inp, Tensor reference, int downsample_factor=1, float important_threshold=0.0)"
    " -> Tensor",
    residual_diff_reference,
    _fake,
)
