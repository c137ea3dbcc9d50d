"""Tensors of any shape and strides as rows and columns, and the tiles of them that one program works on.

Neighbouring axes that every tensor of a kernel steps through evenly are one axis: contiguous tensors are one row, a
slice of every k-th channel usually is too. What is left is at most three axes of rows and one of columns; a tensor
that needs more is copied. Row and column numbers are int64: offsets pass 2**31 before sizes do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from torch import Tensor

from fxcache.kernels._launch import jit, tl

_ROW_AXES = 3
_NARROW = 64


@dataclass(frozen=True)
class Tiling:
    """How the programs share the elements: see `plan_tiles`."""

    rows: int
    columns: int
    inner_rows: tuple[int, int]
    """Sizes of the second and third axis of rows."""
    strides: tuple[tuple[int, ...], ...]
    """For each tensor those of the three axes of rows and of the columns."""
    tile: tuple[int, int]
    """Rows and columns of a tile, powers of two."""

    @cached_property
    def row_tiles(self) -> int:
        """Tiles from top to bottom."""
        return -(-self.rows // self.tile[0])

    @cached_property
    def count(self) -> int:
        """All tiles."""
        return self.row_tiles * -(-self.columns // self.tile[1])

    @cached_property
    def arguments(self) -> tuple[int, ...]:
        """What every tiled kernel takes after its pointers: rows, columns, inner rows, strides of each tensor."""
        flat = (stride for strides in self.strides for stride in strides)
        return (self.rows, self.columns, *self.inner_rows, *flat)

    @cached_property
    def constants(self) -> dict[str, Any]:
        """Shape of a tile."""
        return {"ROWS": self.tile[0], "COLUMNS": self.tile[1]}


def plan_tiles(
    tensors: Sequence[Tensor | None], elements: int, keep_channels: bool = False
) -> tuple[Tiling, Sequence[Tensor | None]]:
    """Rows and columns of tensors of one shape, in tiles of ``elements``; the last one is contiguous and not None.

    With ``keep_channels`` the columns are the last axis, otherwise as many axes as possible. Returns the tensors to
    give to the kernel too: as they came, or copies.
    """
    shape = tuple(tensors[-1].shape) if tensors[-1] is not None else ()
    strides = tuple(None if tensor is None else tensor.stride() for tensor in tensors)
    tiling = _tiling(shape, strides, elements, keep_channels)
    if tiling is None:
        return plan_tiles(
            [None if tensor is None else tensor.contiguous() for tensor in tensors], elements, keep_channels
        )
    return tiling, tensors


@lru_cache(maxsize=4096)  # a launch takes microseconds on the host, and a model has few shapes
def _tiling(
    shape: tuple[int, ...], every: tuple[tuple[int, ...] | None, ...], elements: int, keep_channels: bool
) -> Tiling | None:
    """The tiling of tensors with these strides; None when they have too many axes."""
    sizes, strides = _axes(shape, [own or (0,) * len(shape) for own in every], keep_channels)
    missing = _ROW_AXES + 1 - len(sizes)
    if missing < 0:
        return None
    sizes = [1] * missing + sizes
    padded = tuple((0,) * missing + tuple(own) for own in strides)
    rows, columns = sizes[0] * sizes[1] * sizes[2], sizes[3]
    even = all(steps[3] == 1 for steps, own in zip(padded, every, strict=True) if own is not None)
    # A tensor whose channels are far apart is read along its rows: a tile as wide as high uses what a cache line holds.
    across = min(_power_of_two(columns), elements if even or rows == 1 else _NARROW)
    return Tiling(rows, columns, (sizes[1], sizes[2]), padded, (min(_power_of_two(rows), elements // across), across))


def _axes(
    shape: Sequence[int], every: Sequence[Sequence[int]], keep_channels: bool
) -> tuple[list[int], list[list[int]]]:
    """Merged sizes, and for each tensor its strides along them."""
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in every]
    last = len(shape) - 1
    for axis, size in enumerate(shape):
        channels = keep_channels and axis == last
        if size == 1 and not channels:
            continue
        even = all(done and done[-1] == own[axis] * size for done, own in zip(strides, every, strict=True))
        if even and not channels:
            sizes[-1] *= size
            for done, own in zip(strides, every, strict=True):
                done[-1] = own[axis]
        else:
            sizes.append(size)
            for done, own in zip(strides, every, strict=True):
                done.append(own[axis])
    return (sizes, strides) if sizes else ([1], [[1] for _ in every])


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


@jit
def tile_numbers(
    tile: tl.tensor, rows: tl.tensor, columns: tl.tensor, ROWS: tl.constexpr, COLUMNS: tl.constexpr
) -> tl.tensor:
    """Row and column numbers of the elements of a tile, and which of them exist."""
    across = tl.cdiv(columns, COLUMNS)
    o_row = (tile // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    o_column = (tile % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return o_row, o_column, (o_row < rows) & (o_column < columns)


@jit
def offsets(
    o_row: tl.tensor,
    o_column: tl.tensor,
    rows_1: tl.tensor,
    rows_2: tl.tensor,
    s_0: tl.tensor,
    s_1: tl.tensor,
    s_2: tl.tensor,
    s_3: tl.tensor,
) -> tl.tensor:
    """Offsets of elements in a tensor with these strides."""
    o_outer = o_row // rows_2
    return o_outer // rows_1 * s_0 + o_outer % rows_1 * s_1 + o_row % rows_2 * s_2 + o_column * s_3
