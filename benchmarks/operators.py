"""The operators as `benchmarks.kernels` measures them: arguments, results, and the bytes that have to be moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from fxcache import kernels

Maker = Callable[[tuple[int, ...], torch.dtype, torch.Generator], "Work"]

ROUNDED = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}
"""Relative to the largest value: one rounding to the dtype, on either side."""
SUMMED = 1e-4
ENTRIES = 4


@dataclass(frozen=True)
class Work:
    """One operator with its arguments."""

    operator: Any
    function: Callable[..., Any]
    """The reference."""
    arguments: tuple[Any, ...]
    moved_bytes: int
    allowed: float
    stream: Tensor
    """The largest argument."""
    changed: tuple[Tensor, ...] = ()
    """Arguments that are written in place, instead of a result."""

    def run(self) -> Any:
        """Call the operator."""
        return self.operator(*self.arguments)

    def reference(self) -> Any:
        """Call the reference."""
        return self.function(*self.arguments)

    def results(self, call: Callable[[], Any]) -> tuple[Tensor, ...]:
        """What a call returns or writes; what it writes into is blank before."""
        for tensor in self.changed:
            tensor.zero_()
        result = call()
        return tuple(tensor.clone() for tensor in self.changed) if self.changed else (result,)


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, dtype=dtype, device=generator.device, generator=generator)


def _slot(slot: int) -> Tensor:
    return torch.tensor(slot)


def extrapolate_one(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Work:
    """The fresh stream plus one cached residual."""
    live_in, history = _tensor(shape, dtype, generator), _tensor((1, *shape), dtype, generator)
    moved = 3 * live_in.nbytes
    operator, reference = torch.ops.fxcache.extrapolate.default, kernels.extrapolate_reference
    return Work(operator, reference, (live_in, history), moved, ROUNDED[dtype], history)


def extrapolate_several(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Work:
    """The fresh stream, part of a longer sequence, plus a sum of three residuals of four."""
    longer = _tensor((shape[0], shape[1] + 512, *shape[2:]), dtype, generator)
    live_in, history = longer[:, 512:], _tensor((ENTRIES, *shape), dtype, generator)
    coefficients = torch.tensor([3.0, -3.0, 0.0, 1.0], device=generator.device)
    moved = (ENTRIES + 1) * history[0].nbytes
    operator, reference = torch.ops.fxcache.extrapolate.default, kernels.extrapolate_reference
    return Work(operator, reference, (live_in, history, coefficients), moved, ROUNDED[dtype], history)


def commit(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Work:
    """The residual of a stream into a slot."""
    live_out, live_in = (_tensor(shape, dtype, generator) for _ in range(2))
    history = torch.zeros((2, *shape), dtype=dtype, device=generator.device)
    health = torch.zeros(1, 2, device=generator.device)
    arguments = _slot(1), live_out, live_in, history, health, 0
    operator, reference = torch.ops.fxcache.commit.default, kernels.commit_reference
    moved = 3 * live_out.nbytes
    return Work(operator, reference, arguments, moved, ROUNDED[dtype], history, (history, health))


def _residual_diff(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, every: int, important: float
) -> Work:
    out, inp = (_tensor(shape, dtype, generator) for _ in range(2))
    reference = _tensor((*shape[:-1], -(-shape[-1] // every)), torch.float32, generator)
    moved = out.nbytes + inp.nbytes + reference.nbytes
    operator, function = torch.ops.fxcache.residual_diff.default, kernels.residual_diff_reference
    return Work(operator, function, (out, inp, reference, every, important), moved, SUMMED, out)


def residual_diff(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Work:
    """The indicator over everything."""
    return _residual_diff(shape, dtype, generator, 1, 0.0)


def residual_diff_important(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Work:
    """The indicator of important tokens: with a limit that no token is near, or rounding would choose."""
    return _residual_diff(shape, dtype, generator, 1, 0.5)


def residual_diff_every_second(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Work:
    """The indicator of every second channel; the cache lines of the others are moved too, so they count."""
    return _residual_diff(shape, dtype, generator, 2, 0.0)


def residual_products(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Work:
    """All products of the residual and its differences to four others."""
    out, inp = (_tensor(shape, dtype, generator) for _ in range(2))
    history = _tensor((ENTRIES, *shape), torch.float32, generator)
    moved = out.nbytes + inp.nbytes + history.nbytes
    operator, reference = torch.ops.fxcache.residual_products.default, kernels.residual_products_reference
    return Work(operator, reference, (out, inp, history), moved, 1e-10, history)


def window_products(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Work:
    """One row and column of the products of four residuals."""
    history = _tensor((ENTRIES, *shape), dtype, generator)
    gram = torch.zeros(ENTRIES, ENTRIES, dtype=torch.float64, device=generator.device)
    operator, reference = torch.ops.fxcache.window_products.default, kernels.window_products_reference
    moved = ENTRIES * prod(shape) * dtype.itemsize
    return Work(operator, reference, (_slot(1), history, gram), moved, 1e-10, history, (gram,))


OPERATORS: dict[str, Maker] = {
    "extrapolate, 1 entry": extrapolate_one,
    "extrapolate, 3 of 4": extrapolate_several,
    "commit": commit,
    "residual_diff": residual_diff,
    "residual_diff, important": residual_diff_important,
    "residual_diff, every 2nd": residual_diff_every_second,
    "residual_products": residual_products,
    "window_products": window_products,
}
