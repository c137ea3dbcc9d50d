"""What a forecast is made from, and the table of the functions that make one: the calibrators fill it.

A calibrator turns what is known of the last computed steps into one weight per stored value; the prediction is the
weighted sum, and `extrapolate` is the kernel that forms it. So a calibrator is arithmetic on a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

Matrix = Sequence[Sequence[float]]

MAX_ENTRIES = 8
"""Most values that a history holds."""


@dataclass(frozen=True)
class Window:
    """The computed steps that are still stored, newest first; n of them, at least one."""

    times: tuple[float, ...]
    """When they were computed, all different."""
    now: float
    """The time of the step to be predicted, on the same axis."""
    products: Matrix | None = None
    """[n + 1, n + 1]: scalar products of the present observation r and of h_i - r for the stored ones.
    None: nothing was observed."""
    gram: Matrix | None = None
    """[n, n]: scalar products of the values to be predicted themselves; None: nobody asked for them."""


Weights = Callable[[Window], "list[float]"]


@dataclass(frozen=True)
class Forecaster:
    """One way to predict, with its parameters bound."""

    weights: Weights
    """n finite weights, newest first."""
    needs_products: bool = False
    """Works only with an observation."""
    needs_gram: bool = False


_makers: dict[str, Callable[..., Forecaster]] = {}


def register_forecaster(name: str, make: Callable[..., Forecaster]) -> None:
    """Let ``forecaster("name 1 2.5")`` call ``make(1.0, 2.5)``."""
    _makers[name] = make
    forecaster.cache_clear()


@lru_cache(maxsize=64)
def forecaster(spec: str) -> Forecaster:
    """Return the forecaster that a name and its numbers, separated by blanks, stand for. Raises ValueError if unknown.

    The text is what stands in the graph, and so in what the compiler keeps on disk.
    """
    name, *numbers = spec.split()
    if name not in _makers:
        raise ValueError(f"forecast={spec!r}: expected one of {', '.join(sorted(_makers))}, and its numbers")
    return _makers[name](*map(float, numbers))


def forecast_error(products: Matrix, weights: list[float]) -> float:
    """Norm of ``r - sum_i w_i h_i`` relative to that of r, from the products of a `Window`; 0 / 0 is 0.

    >>> forecast_error([[4.0, 2.0], [2.0, 1.0]], [1.0])
    0.5
    """
    vector = [1.0 - sum(weights), *(-weight for weight in weights)]
    squared = sum(
        one * sum(product * other for product, other in zip(row, vector, strict=True))
        for one, row in zip(vector, products, strict=True)
    )
    size = products[0][0]
    if squared <= 0.0:  # rounding may leave a little less than nothing
        return 0.0 if size >= 0.0 else size
    return (squared / size) ** 0.5 if size > 0.0 else float("inf")
