"""When a step is computed, in one form for all contestants, and masks of evenly spread steps."""

from __future__ import annotations

from dataclasses import dataclass

import fxcache


@dataclass(frozen=True)
class Schedule:
    """When a step is computed."""

    family: str
    """`steps`: all of them; `mask`: those of a mask; `threshold`: those that differ by more than it; `knob`: what the
    one number of another method says."""
    steps: int
    """Steps of one generation."""
    first_blocks: int = 1
    """Blocks at the start that run in every step."""
    mask: str | None = None
    """`1` where a step is computed, `0` where it is reused."""
    threshold: float | None = None
    """Of a difference, or the number of another method."""
    warmup_steps: int | None = None
    words: str | None = None
    """The setting as tables call it."""
    last_blocks: int = 0
    """Blocks at the end that run in every step."""


def spread_mask(total_steps: int, computed_steps: int, compute_last: bool = True) -> str:
    """A mask with `computed_steps` ones: the first two, and the others spread evenly, the last step among them or not.

    Raises OptionError (a ValueError) for more ones than steps.
    """
    mask = fxcache.steps_mask(total_steps=total_steps, computed_steps=computed_steps, compute_last=compute_last)
    return "".join(map(str, mask))
