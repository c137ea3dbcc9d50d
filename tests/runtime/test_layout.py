"""Shapes of the state from the integers of a call."""

from __future__ import annotations

import sympy
import torch

from fxcache.runtime.interface import TensorSpec
from fxcache.runtime.layout import StateLayout

CPU = torch.device("cpu")
ROWS, COLS = sympy.Symbol("s0", integer=True), sympy.Symbol("s1", integer=True)


def layout(*shapes: tuple[object, ...], symbols: tuple[tuple[sympy.Symbol, int], ...] = ()) -> StateLayout:
    dtypes = (torch.float32, torch.bfloat16)[: len(shapes)]
    return StateLayout(shapes, dtypes, (CPU,) * len(shapes), symbols)  # type: ignore[arg-type]


def test_static_shapes():
    specs = layout((1, 20, 32), (2,)).resolver()
    expected = (TensorSpec((1, 20, 32), torch.float32, CPU), TensorSpec((2,), torch.bfloat16, CPU))
    assert specs([]) == expected
    assert specs([torch.zeros(3), 7]) == expected


def test_expressions_over_the_integers_of_the_call():
    shape = (1, ROWS * (COLS // 2), 8)
    specs = layout(shape, (ROWS + COLS,), symbols=((ROWS, 0), (COLS, 2))).resolver()
    assert [spec.shape for spec in specs([4, torch.zeros(1), 6])] == [(1, 12, 8), (10,)]
    assert [spec.shape for spec in specs([3, None, 9])] == [(1, 12, 8), (12,)]


def test_sizes_are_plain_integers():
    specs = layout((sympy.Max(1, ROWS), ROWS - ROWS), symbols=((ROWS, 0),)).resolver()
    (spec,) = specs([0])
    assert spec.shape == (1, 0)
    assert all(type(size) is int for size in spec.shape)


def test_one_evaluation_per_combination_of_sizes():
    specs = layout((ROWS,), symbols=((ROWS, 1),)).resolver()
    first = specs(["anything", 5])
    assert specs(["other", 5]) is first
    assert specs(["other", 6]) is not first


def test_resolvers_do_not_share_what_they_know():
    one, two = layout((ROWS,), symbols=((ROWS, 0),)), layout((2 * ROWS,), symbols=((ROWS, 0),))
    assert one.resolver()([3])[0].shape == (3,)
    assert two.resolver()([3])[0].shape == (6,)
