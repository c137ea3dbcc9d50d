"""Rows and columns reach every element of a tensor once and in order, whatever its strides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcache.kernels._tiles import Tiling, plan_tiles
from tests.kernels.tolerances import random


def elements(tiling: Tiling, tensor: torch.Tensor, place: int) -> torch.Tensor:
    """What a kernel reads of a tensor, row by row, by the formula of `_tiles.offsets`."""
    (rows_1, rows_2), strides = tiling.inner_rows, tiling.strides[place]
    row, column = torch.arange(tiling.rows)[:, None], torch.arange(tiling.columns)[None, :]
    outer = row // rows_2
    steps = (outer // rows_1, outer % rows_1, row % rows_2, column)
    offsets = sum(step * stride for step, stride in zip(steps, strides, strict=True))
    flat = tensor.as_strided((int(offsets.max()) + 1,), (1,))
    return flat[offsets].flatten()


@st.composite
def tensors(draw: st.DrawFn, shape: list[int]) -> torch.Tensor:
    """A tensor of this shape: axes in any order, with gaps, or repeated."""
    axes = draw(st.permutations(range(len(shape))))
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 2, 3]), min_size=len(shape), max_size=len(shape)))
    kept = draw(st.lists(st.sampled_from([True, True, True, False]), min_size=len(shape), max_size=len(shape)))
    wide = random(*[shape[axis] * steps[axis] if kept[axis] else 1 for axis in axes])
    moved = wide.permute([axes.index(axis) for axis in range(len(shape))])
    return moved[tuple(slice(None, None, step) for step in steps)].expand(shape)


@given(st.data(), st.lists(st.integers(1, 4), min_size=1, max_size=6), st.booleans())
def test_every_element_in_order(data, shape, keep_channels):
    chosen = [data.draw(tensors(shape)), data.draw(st.none() | tensors(shape)), random(*shape)]
    tiling, given = plan_tiles(chosen, 16, keep_channels)
    for place, tensor in enumerate(chosen):
        if tensor is not None:
            assert torch.equal(elements(tiling, given[place], place), tensor.flatten())
    assert tiling.rows * tiling.columns == chosen[0].numel()
    assert not keep_channels or tiling.columns == shape[-1]
    rows, columns = tiling.tile
    assert rows * columns <= 16 and tiling.row_tiles * rows >= tiling.rows
    assert tiling.count == tiling.row_tiles * -(-tiling.columns // columns)


def planned(tensor: torch.Tensor, size: int, keep_channels: bool = False) -> Any:
    """Tiles of a tensor beside a contiguous one."""
    return plan_tiles([tensor, torch.empty(tensor.shape)], size, keep_channels)


@pytest.mark.parametrize(
    ("tensor", "rows", "columns"),
    [
        (random(2, 3, 8), 1, 48),
        (random(2, 3, 8)[..., ::2], 1, 24),
        (random(2, 3, 9)[..., ::2], 6, 5),
        (random(2, 9, 8)[:, 5:], 2, 32),
        (random(2, 8, 3).transpose(1, 2), 6, 8),
        (random(4, 1, 8).expand(4, 3, 8), 12, 8),
        (torch.tensor(1.0), 1, 1),
    ],
    ids=["flat", "even slice", "uneven slice", "part of a sequence", "transposed", "expanded", "scalar"],
)
def test_as_few_rows_as_possible(tensor, rows, columns):
    tiling, given = planned(tensor, 16)
    assert (tiling.rows, tiling.columns) == (rows, columns)
    assert given[0] is tensor


def test_only_what_has_too_many_axes_is_copied():
    many = random(5, 4, 3, 2, 2).permute(4, 3, 2, 1, 0)
    kept, given = planned(many[0], 16)
    assert given[0].data_ptr() == many.data_ptr()
    tiling, given = planned(many, 16)
    assert given[0].is_contiguous() and tiling.rows == 1
    kept, given = planned(many, 16, keep_channels=True)
    assert (kept.rows, kept.columns) == (48, 5)


def test_tiles_of_what_is_read_across_are_narrow():
    assert planned(random(512, 4096), 2048)[0].tile == (1, 2048)
    assert planned(random(4096, 512).T, 2048)[0].tile == (32, 64)
    assert planned(random(512, 4096)[:, :3072], 2048)[0].tile == (1, 2048)
    assert planned(random(4096, 100)[:, :64], 2048)[0].tile == (32, 64)
