"""What a metric has found, as a value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["ItemValue", "MetricResult"]


class ItemValue(NamedTuple):
    """The value of one picture, pair of pictures, or frame."""

    name: str
    """File and frame; of a pair, those of the first argument."""
    value: float


@dataclass(frozen=True)
class MetricResult:
    """One metric of one comparison.

    >>> print(MetricResult("psnr", 31.25, "dB", higher_is_better=True, count=2, details={"identical": 0}))
    psnr 31.25 dB (2 pairs, identical 0)
    """

    metric: str
    value: float
    """The mean over the items, or what the metric says of all of them together."""
    unit: str
    """Empty where the metric has none."""
    higher_is_better: bool
    count: int
    """Pairs, pictures or frames that went into the value."""
    items: tuple[ItemValue, ...] = ()
    """One value each, in their order; empty where there are none, as for FID."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further figures and settings of this metric; `docs/metrics.md` lists them."""
    counted: str = "pairs"
    """What `count` is a number of."""

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        number = f"{self.value:.6g} {self.unit}".rstrip()
        return f"{self.metric} {number} ({self.about()})"

    def about(self) -> str:
        """Return the count and the details in words."""
        counted = self.counted.removesuffix("s") if self.count == 1 else self.counted
        # what repeats the value says nothing new
        details = {name: value for name, value in self.details.items() if value != self.value}
        return ", ".join((f"{self.count} {counted}", *(f"{name} {_short(value)}" for name, value in details.items())))

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; an infinite number is the string `inf`, which `float` reads."""
        return {
            "metric": self.metric,
            "value": _plain(self.value),
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "count": self.count,
            "counted": self.counted,
            "details": {name: _plain(value) for name, value in self.details.items()},
            "items": [{"name": item.name, "value": _plain(item.value)} for item in self.items],
        }


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
