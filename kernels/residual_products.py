"""Where the present residual of the first blocks lies among those of the last computed steps.

    r      = out - inp                              (or ``out`` alone when ``inp`` is None)
    v      = ( r,  history[0] - r,  ...,  history[n-1] - r )
    P_ij   = sum( v_i * v_j )                       over all elements; products and sums are float64

The distance of r to any combination of the stored residuals follows from P alone, and so does the nearest one:
`decide` needs no second pass. Taking differences to r first keeps small distances exact. With ``downsample_factor`` k
every k-th channel (last axis) counts. Shapes: ``out``/``inp`` [..., C], ``history`` contiguous [n, ..., ceil(C / k)]
in float32 (float64 if ``out`` is), n <= 8, result float64 [n + 1, n + 1]. An entry that is not finite spoils its own
row and column only.

Bytes moved: out + inp + history once; each of the (n + 1) (n + 2) / 2 different products is formed once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxcache.kernels._forecast import MAX_ENTRIES
from fxcache.kernels._launch import Launch, elements_per_program, jit, run, runs_triton, tl
from fxcache.kernels._library import register_operator
from fxcache.kernels._tiles import offsets, plan_tiles, tile_numbers
from fxcache.kernels.residual_diff import every_nth, fn_residual

_COMBINED = 1024
_PROGRAMS = 1024
"""Most programs, half of it from three entries on: each ends with a sum over its threads for every pair."""
_PART = 4


def residual_products_reference(out: Tensor, inp: Tensor | None, history: Tensor, downsample_factor: int = 1) -> Tensor:
    """Return float64 [n + 1, n + 1], the scalar products."""
    residual = fn_residual(out, inp, downsample_factor)
    # one matrix product: on a CPU this is what a step of a small model waits for
    vectors = torch.stack([residual, *(history - residual)]).double().flatten(1)
    products = vectors @ vectors.T
    return (products + products.T) / 2


def residual_products_by_pairs(out: Tensor, inp: Tensor | None, history: Tensor, downsample_factor: int = 1) -> Tensor:
    """The same one pair after the other: for a compiler that makes one loop of all, far less memory is moved."""
    residual = fn_residual(out, inp, downsample_factor)
    vectors = [vector.double() for vector in (residual, *(entry - residual for entry in history.unbind()))]
    size = len(vectors)
    sums = {(i, j): (vectors[i] * vectors[j]).sum() for i in range(size) for j in range(i, size)}
    return torch.stack([sums[min(i, j), max(i, j)] for i in range(size) for j in range(size)]).view(size, size)


@jit
def multiply_pairs_kernel(
    partials_ptr: tl.tensor,
    out_ptr: tl.tensor,
    inp_ptr: tl.tensor,
    history_ptr: tl.tensor,
    entry_size: tl.tensor,
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
    ENTRIES: tl.constexpr,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Every program: products of its share of the tiles, into its column of ``partials`` [pairs, programs].

    Pairs are those of the upper triangle, row by row. Sums over PART neighbouring elements, which one thread holds,
    are what is added up over the tiles: threads meet only at the end.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    PARTS: tl.constexpr = ROWS * COLUMNS // PART
    totals = (tl.zeros([PARTS], tl.float64),) * ((ENTRIES + 1) * (ENTRIES + 2) // 2)
    for tile in range(program, tl.cdiv(rows, ROWS) * tl.cdiv(columns, COLUMNS), programs):
        o_row, o_column, m_tile = tile_numbers(tile, rows, columns, ROWS, COLUMNS)
        p_out = out_ptr + offsets(o_row, o_column, rows_1, rows_2, s_0, s_1, s_2, s_3)
        b_residual = tl.load(p_out, mask=m_tile, other=0.0).to(tl.float32)
        if inp_ptr is not None:
            p_inp = inp_ptr + offsets(o_row, o_column, rows_1, rows_2, t_0, t_1, t_2, t_3)
            b_residual -= tl.load(p_inp, mask=m_tile, other=0.0).to(tl.float32)
        vectors = tl.tuple([b_residual])
        p_entry = history_ptr + o_row * columns + o_column
        for _ in tl.static_range(ENTRIES):
            vectors += (tl.load(p_entry, mask=m_tile, other=0.0) - b_residual,)
            p_entry += entry_size
        sums = tl.tuple([])
        for one in tl.static_range(ENTRIES + 1):
            for other in tl.static_range(one, ENTRIES + 1):
                b_product = vectors[one].to(tl.float64) * vectors[other].to(tl.float64)
                sums += (totals[len(sums)] + tl.sum(tl.reshape(b_product, [PARTS, PART]), axis=1),)
        totals = sums
    for pair in tl.static_range(len(totals)):
        tl.store(partials_ptr + pair * programs + program, tl.sum(totals[pair]))


@jit
def fill_matrix_kernel(
    products_ptr: tl.tensor, partials_ptr: tl.tensor, count: tl.tensor, SIZE: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """One program per element of the matrix [SIZE, SIZE]: the sum of its pair's row of ``partials`` [pairs, count]."""
    place = tl.program_id(0)
    low, high = tl.minimum(place // SIZE, place % SIZE), tl.maximum(place // SIZE, place % SIZE)
    pair = low * SIZE - low * (low + 1) // 2 + high
    b_sum = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        o_part = start + tl.arange(0, BLOCK)
        b_sum += tl.load(partials_ptr + pair * count + o_part, mask=o_part < count, other=0.0)
    tl.store(products_ptr + place, tl.sum(b_sum))


def residual_products(out: Tensor, inp: Tensor | None, history: Tensor, downsample_factor: int = 1) -> Tensor:
    """The operator: the kernels where they run, the reference elsewhere."""
    _check(out, inp, history, downsample_factor)
    if runs_triton(out, inp, history):
        size = history.shape[0] + 1
        products = torch.empty((size, size), dtype=torch.float64, device=out.device)
        if run("residual_products", plan(products, out, inp, history, downsample_factor), out.device):
            return products
    return residual_products_reference(out, inp, history, downsample_factor)


def plan(products: Tensor, out: Tensor, inp: Tensor | None, history: Tensor, downsample_factor: int) -> list[Launch]:
    """The launches that fill ``products``."""
    entries, entry = history.shape[0], history[0]
    values = [None if value is None else every_nth(value, downsample_factor) for value in (out, inp)]
    # One access of 16 bytes per thread and entry: a second one would make the sums of eight entries spill.
    tiling, tensors = plan_tiles([*values, entry], elements_per_program(history) // 2)
    rows, columns = tiling.tile
    count, pairs = min(tiling.count, _PROGRAMS if entries <= 2 else _PROGRAMS // 2), (entries + 1) * (entries + 2) // 2
    partials = torch.empty((pairs, count), dtype=torch.float64, device=out.device)
    return [
        Launch(
            multiply_pairs_kernel,
            count,
            (partials, *tensors[:2], history, entry.numel(), *tiling.arguments[:-4]),
            {"ENTRIES": entries, "PART": min(_PART, rows * columns), **tiling.constants},
        ),
        Launch(
            fill_matrix_kernel,
            (entries + 1) ** 2,
            (products, partials, count),
            {"SIZE": entries + 1, "BLOCK": _COMBINED},
        ),
    ]


def _check(out: Tensor, inp: Tensor | None, history: Tensor, downsample_factor: int) -> None:
    entries = history.shape[0]
    if not 1 <= entries <= MAX_ENTRIES:
        raise ValueError(f"history: {entries} entries, allowed are 1 to {MAX_ENTRIES}")
    if not history.is_contiguous():
        raise ValueError(f"history: strides {history.stride()} of shape {tuple(history.shape)}, it must be contiguous")
    wide = torch.promote_types(out.dtype, torch.float32)
    if history.dtype != wide:
        raise ValueError(f"history: {history.dtype}, it must be {wide} for out in {out.dtype}")
    compared = every_nth(out, downsample_factor).shape
    if history.shape[1:] != compared:
        raise ValueError(f"history: entries of {tuple(history.shape[1:])}, what is compared is {tuple(compared)}")
    if inp is not None and inp.shape != out.shape:
        raise ValueError(f"inp: shape {tuple(inp.shape)}, that of out is {tuple(out.shape)}")


def _fake(out: Tensor, inp: Tensor | None, history: Tensor, downsample_factor: int = 1) -> Tensor:
    size = history.shape[0] + 1
    return out.new_empty((size, size), dtype=torch.float64)


register_operator(
    "residual_products(Tensor out, Tensor? inp, Tensor history, int downsample_factor=1) -> Tensor",
    residual_products,
    _fake,
)
