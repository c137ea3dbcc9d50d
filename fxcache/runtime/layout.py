"""Shapes of the state of one graph, computed from the integers that the graph is called with.

Dynamic sizes are expressions over the graph's symbols, and each symbol is itself an input of the graph, so the shape of
every state tensor is known before the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import sympy  # type: ignore[import-untyped]
import torch

from fxcache.runtime.interface import TensorSpec

Size: TypeAlias = "int | sympy.Expr"


@dataclass(frozen=True)
class StateLayout:
    """Dtypes, devices and size expressions of the state tensors, and where the symbols are among the flat inputs."""

    shapes: tuple[tuple[Size, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    devices: tuple[torch.device, ...]
    symbols: tuple[tuple[sympy.Symbol, int], ...]

    def resolver(self) -> Callable[[Sequence[object]], tuple[TensorSpec, ...]]:
        """Return a function from flat inputs to concrete specifications; one evaluation per combination of sizes."""
        known: dict[tuple[object, ...], tuple[TensorSpec, ...]] = {}

        def specs(flat: Sequence[object]) -> tuple[TensorSpec, ...]:
            key = tuple(flat[i] for _, i in self.symbols)
            if key not in known:
                values = {symbol: value for (symbol, _), value in zip(self.symbols, key, strict=True)}
                known[key] = tuple(
                    TensorSpec(tuple(_evaluate(size, values) for size in shape), dtype, device)
                    for shape, dtype, device in zip(self.shapes, self.dtypes, self.devices, strict=True)
                )
            return known[key]

        return specs


def _evaluate(size: Size, values: dict[sympy.Symbol, object]) -> int:
    return size if isinstance(size, int) else int(size.subs(values))
