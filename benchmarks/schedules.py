"""Which steps are computed: masks of evenly spread steps, grids of thresholds, or fewer steps; the same for all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import fxcache

FAMILIES = ("steps", "mask", "threshold", "published")
"""Fewer steps, all of them computed; the steps of a mask; the steps that differ by more than a threshold; the rules of
other methods."""
FACTORS = (1.5, 2.0, 3.0, 4.0, 5.0, 6.0)
"""How many times fewer block executions are aimed at."""
BARE_FROM = 3.0
"""From this factor on there are also masks without a block that always runs."""
THRESHOLDS = (0.09, 0.12, 0.18, 0.27, 0.4)
"""For every method and every indicator."""
WARMUPS = (2, 4)


@dataclass(frozen=True)
class Schedule:
    """When a step is computed."""

    family: str
    """One of `FAMILIES`."""
    steps: int
    """Steps of one generation."""
    first_blocks: int = 1
    """Blocks at the start that run in every step."""
    mask: str | None = None
    """`1` where a step is computed, `0` where it is reused."""
    threshold: float | None = None
    warmup_steps: int | None = None
    indicator: str | None = None
    words: str | None = None
    """The rule of another method."""
    last_blocks: int = 0
    """Blocks at the end that run in every step."""

    @property
    def name(self) -> str:
        """In a few words."""
        if self.words is not None:
            return f"{self.words}, F{self.first_blocks}"
        if self.mask is not None:
            return f"mask {self.mask.count('1')} of {self.steps}, F{self.first_blocks}"
        if self.threshold is not None:
            return f"{self.indicator} < {self.threshold:g}, W{self.warmup_steps}, F{self.first_blocks}"
        return f"{self.steps} steps"


def spread_mask(total_steps: int, computed_steps: int, compute_last: bool = True) -> str:
    """A mask with `computed_steps` ones: the first two, and the others spread evenly, the last step among them or not.

    Raises OptionError (a ValueError) for more ones than steps.
    """
    mask = fxcache.steps_mask(total_steps=total_steps, computed_steps=computed_steps, compute_last=compute_last)
    return "".join(map(str, mask))


def block_factor(total_steps: int, computed_steps: int, blocks: int, first_blocks: int) -> float:
    """All block executions of an uncached generation over those where only `computed_steps` run more than the first."""
    run = computed_steps * blocks + (total_steps - computed_steps) * first_blocks
    return total_steps * blocks / run


def computed_steps_for(factor: float, total_steps: int, blocks: int, first_blocks: int) -> int:
    """How many steps to compute so that `block_factor` comes near `factor`; at least the three of every mask."""
    wanted = total_steps * (blocks / factor - first_blocks) / (blocks - first_blocks)
    return min(max(round(wanted), 3), total_steps)


def fewer_steps(total_steps: int) -> list[Schedule]:
    """The baseline without a cache: as many block executions, in fewer steps."""
    return [Schedule("steps", steps) for steps in _once(round(total_steps / factor) for factor in FACTORS)]


def masks(total_steps: int, blocks: int, first_blocks: int) -> list[Schedule]:
    """One mask per factor, those of equal length once."""
    factors = [factor for factor in FACTORS if first_blocks or factor >= BARE_FROM]
    counts = _once(computed_steps_for(factor, total_steps, blocks, first_blocks) for factor in factors)
    return [Schedule("mask", total_steps, first_blocks, spread_mask(total_steps, count)) for count in counts]


def thresholds(total_steps: int, indicator: str) -> list[Schedule]:
    """The grid of thresholds and warmups of an indicator."""
    return [
        Schedule("threshold", total_steps, threshold=threshold, warmup_steps=warmup, indicator=indicator)
        for warmup in WARMUPS
        for threshold in THRESHOLDS
    ]


def _once(counts: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(counts))
