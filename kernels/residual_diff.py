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

from fxcache.kernels._launch import PARTIALS, Launch, elements_per_program, jit, run, runs_triton, tl
from fxcache.kernels._library import register_operator
from fxcache.kernels._tiles import offsets, plan_tiles, tile_numbers

_COMBINED = 1024


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


@jit
def tile_terms(
    out_ptr: tl.tensor,
    inp_ptr: tl.tensor,
    reference_ptr: tl.tensor,
    tile: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    rows_1: tl.tensor,
    rows_2: tl.tensor,
    s_0: tl.tensor,
    s_1: tl.tensor,
    s_2: tl.tensor,
    s_3: tl.tensor,
    t_0: tl.tensor,
    t_1: tl.tensor,
    t_2: tl.tensor,
    t_3: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tl.tensor:
    """``|reference - r|`` and ``|reference|`` of one tile, 0 outside."""
    o_row, o_column, m_tile = tile_numbers(tile, rows, columns, ROWS, COLUMNS)
    p_out = out_ptr + offsets(o_row, o_column, rows_1, rows_2, s_0, s_1, s_2, s_3)
    b_residual = tl.load(p_out, mask=m_tile, other=0.0).to(tl.float32)
    if inp_ptr is not None:
        p_inp = inp_ptr + offsets(o_row, o_column, rows_1, rows_2, t_0, t_1, t_2, t_3)
        b_residual -= tl.load(p_inp, mask=m_tile, other=0.0).to(tl.float32)
    b_reference = tl.load(reference_ptr + o_row * columns + o_column, mask=m_tile, other=0.0).to(tl.float32)
    return tl.abs(b_reference - b_residual), tl.abs(b_reference)


@jit
def sum_tiles_kernel(
    partials_ptr: tl.tensor,
    out_ptr: tl.tensor,
    inp_ptr: tl.tensor,
    reference_ptr: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    rows_1: tl.tensor,
    rows_2: tl.tensor,
    s_0: tl.tensor,
    s_1: tl.tensor,
    s_2: tl.tensor,
    s_3: tl.tensor,
    t_0: tl.tensor,
    t_1: tl.tensor,
    t_2: tl.tensor,
    t_3: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Every program: the sums of its share of the tiles, into its column of ``partials`` [2, programs]."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    b_difference = tl.zeros([ROWS, COLUMNS], tl.float32)
    b_magnitude = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tile in range(program, tl.cdiv(rows, ROWS) * tl.cdiv(columns, COLUMNS), programs):
        b_change, b_size = tile_terms(
            out_ptr, inp_ptr, reference_ptr, tile, rows, columns, rows_1, rows_2,
            s_0, s_1, s_2, s_3, t_0, t_1, t_2, t_3, ROWS, COLUMNS,
        )  # fmt: skip
        b_difference += b_change
        b_magnitude += b_size
    tl.store(partials_ptr + program, tl.sum(b_difference))
    tl.store(partials_ptr + programs + program, tl.sum(b_magnitude))


@jit
def sum_tokens_kernel(
    partials_ptr: tl.tensor,
    out_ptr: tl.tensor,
    inp_ptr: tl.tensor,
    reference_ptr: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    rows_1: tl.tensor,
    rows_2: tl.tensor,
    s_0: tl.tensor,
    s_1: tl.tensor,
    s_2: tl.tensor,
    s_3: tl.tensor,
    t_0: tl.tensor,
    t_1: tl.tensor,
    t_2: tl.tensor,
    t_3: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Every program: the sums of each of its tokens, which are rows here, into ``partials`` [2, tokens]."""
    across = tl.cdiv(columns, COLUMNS)
    b_difference = tl.zeros([ROWS, COLUMNS], tl.float32)
    b_magnitude = tl.zeros([ROWS, COLUMNS], tl.float32)
    for place in range(across):
        b_change, b_size = tile_terms(
            out_ptr, inp_ptr, reference_ptr, tl.program_id(0) * across + place, rows, columns, rows_1, rows_2,
            s_0, s_1, s_2, s_3, t_0, t_1, t_2, t_3, ROWS, COLUMNS,
        )  # fmt: skip
        b_difference += b_change
        b_magnitude += b_size
    o_token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    tl.store(partials_ptr + o_token, tl.sum(b_difference, axis=1), mask=o_token < rows)
    tl.store(partials_ptr + rows + o_token, tl.sum(b_magnitude, axis=1), mask=o_token < rows)


@jit
def combine_kernel(
    sums_ptr: tl.tensor,
    partials_ptr: tl.tensor,
    count: tl.tensor,
    threshold: tl.tensor,
    SELECT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: sums of ``partials`` [2, count] in float64, with SELECT those of important tokens if any is."""
    b_sums = tl.zeros([BLOCK], tl.float64)
    b_sizes = tl.zeros([BLOCK], tl.float64)
    b_important_sums = tl.zeros([BLOCK], tl.float64)
    b_important_sizes = tl.zeros([BLOCK], tl.float64)
    b_found = tl.zeros([BLOCK], tl.int32)
    for start in range(0, count, BLOCK):
        o_part = start + tl.arange(0, BLOCK)
        m_part = o_part < count
        b_sum = tl.load(partials_ptr + o_part, mask=m_part, other=0.0)
        b_size = tl.load(partials_ptr + count + o_part, mask=m_part, other=0.0)
        b_sums += b_sum.to(tl.float64)
        b_sizes += b_size.to(tl.float64)
        if SELECT:
            # A Python float comes as float32 from eager and as float64 from code that Inductor made.
            b_limit = tl.cast(threshold, tl.float32) * b_size
            important = (b_sum > b_limit) | ~(b_sum < float("inf"))
            b_important_sums += tl.where(important, b_sum, 0.0).to(tl.float64)
            b_important_sizes += tl.where(important, b_size, 0.0).to(tl.float64)
            b_found |= important.to(tl.int32)
    difference, magnitude = tl.sum(b_sums), tl.sum(b_sizes)
    if SELECT:
        any_important = tl.max(b_found) > 0
        difference = tl.where(any_important, tl.sum(b_important_sums), difference)
        magnitude = tl.where(any_important, tl.sum(b_important_sizes), magnitude)
    tl.store(sums_ptr, difference.to(tl.float32))
    tl.store(sums_ptr + 1, magnitude.to(tl.float32))


def residual_diff(
    out: Tensor, inp: Tensor | None, reference: Tensor, downsample_factor: int = 1, important_threshold: float = 0.0
) -> Tensor:
    """The operator: the kernels where they run, the reference elsewhere."""
    _check(out, inp, reference, downsample_factor)
    if runs_triton(out, inp, reference):
        sums = torch.empty(2, dtype=torch.float32, device=out.device)
        if run("residual_diff", plan(sums, out, inp, reference, downsample_factor, important_threshold), out.device):
            return sums
    return residual_diff_reference(out, inp, reference, downsample_factor, important_threshold)


def plan(
    sums: Tensor, out: Tensor, inp: Tensor | None, reference: Tensor, downsample_factor: int, important: float
) -> list[Launch]:
    """The launches that fill ``sums``: one partial result per program or token, then one program for all of them."""
    select = important > 0.0
    values = [None if value is None else every_nth(value, downsample_factor) for value in (out, inp)]
    # The size of float32 tiles whatever the values are: two running sums per element fill the registers.
    tiling, tensors = plan_tiles([*values, reference], elements_per_program(reference), keep_channels=select)
    kernel, programs, count = sum_tiles_kernel, min(tiling.count, PARTIALS), min(tiling.count, PARTIALS)
    if select:
        kernel, programs, count = sum_tokens_kernel, tiling.row_tiles, tiling.rows
    partials = torch.empty((2, count), dtype=torch.float32, device=out.device)
    return [
        Launch(kernel, programs, (partials, *tensors, *tiling.arguments[:-4]), tiling.constants),
        Launch(combine_kernel, 1, (sums, partials, count, important), {"SELECT": select, "BLOCK": _COMBINED}),
    ]


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
    residual_diff,
    _fake,
)
