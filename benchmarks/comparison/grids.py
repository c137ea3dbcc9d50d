"""The settings that every contestant is tried with: one knob, a few values, the same for all who have it.

Whatever else a method has keeps the value that it has by itself, but for two knobs of those who know them: one block
runs in every step (`--few-step`: a quarter of them at either end), and two steps are computed before the first reuse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import fxcache
from benchmarks.schedules import Schedule, spread_mask

THRESHOLDS = (0.06, 0.09, 0.12, 0.18, 0.27, 0.4)
"""Of a relative difference, from one step to the last computed one or summed over steps."""
ERRORS = (0.03, 0.06, 0.12, 0.24, 0.48, 0.96)
"""Of the accumulated error of magnitudes."""
INTERVALS = (2, 3, 4, 5, 6, 8)
"""A step in so many is computed."""
SHARES = (0.8, 0.6, 0.45, 0.34, 0.32, 0.28, 0.25, 0.22, 0.18, 0.16, 0.12)
"""Of the steps: those that are taken at all in the baseline without a cache, and those that an even mask computes."""
PRESETS = ("slow", "medium", "fast", "ultra")
WARMUP_STEPS = 2
LEAST_SPREAD = 3
"""Steps of an even mask: the first two and the last."""
OPEN_UP_TO = 0.34
"""Share of the steps up to which there are also masks that do not compute the last one: of few steps it is a large
part, and corrects nothing that comes after it."""


@dataclass(frozen=True)
class Frame:
    """What the grids of all contestants share."""

    steps: int
    first_blocks: int = 1
    last_blocks: int = 0


Grid = Callable[[Frame], list[Schedule]]


def preset_mask(preset: str, frame: Frame) -> Schedule:
    """A preset of step computation masks as a schedule."""
    mask = "".join(map(str, fxcache.steps_mask(total_steps=frame.steps, mask_policy=preset)))
    return _masked(mask, f"mask {preset}", frame)


def masks(frame: Frame) -> list[Schedule]:
    """The presets, which compute most at the start, and masks of evenly spread steps; equal masks once.

    Where few steps are computed there are two of these: one ends with a computed step, one is open at its end.
    """
    presets = [preset_mask(preset, frame) for preset in PRESETS]
    counts = _spread_counts(frame)
    even = [_masked(spread_mask(frame.steps, count), "even mask", frame) for count in counts]
    few = [count for count in counts if count <= round(OPEN_UP_TO * frame.steps)]
    opened = [_masked(spread_mask(frame.steps, count, compute_last=False), "open mask", frame) for count in few]
    found: dict[str | None, Schedule] = {}
    for schedule in (*presets, *even, *opened):
        found.setdefault(schedule.mask, schedule)
    return list(found.values())


def _masked(mask: str, words: str, frame: Frame) -> Schedule:
    words = f"{words}, {mask.count('1')} of {frame.steps}"
    return Schedule("mask", frame.steps, frame.first_blocks, mask, words=words, last_blocks=frame.last_blocks)


def thresholds(frame: Frame) -> list[Schedule]:
    """Thresholds of the indicator that a method has by itself."""
    return [
        Schedule(
            "threshold",
            frame.steps,
            frame.first_blocks,
            threshold=threshold,
            warmup_steps=WARMUP_STEPS,
            words=f"threshold {threshold:g}",
            last_blocks=frame.last_blocks,
        )
        for threshold in THRESHOLDS
    ]


def knob(values: tuple[float, ...], word: str) -> Grid:
    """The grid of a method with a knob of its own."""
    return lambda frame: [Schedule("knob", frame.steps, threshold=value, words=f"{word} {value:g}") for value in values]


def measured_masks(frame: Frame) -> list[Schedule]:
    """As many computed steps as even masks have: the one knob of a mask that the model is measured for."""
    return [
        Schedule("knob", frame.steps, threshold=count, words=f"measured mask, {count} of {frame.steps}")
        for count in _spread_counts(frame)
    ]


def fewer_steps(frame: Frame) -> list[Schedule]:
    """The baseline: no cache, as much less work in fewer steps."""
    return [Schedule("steps", count, words=f"{count} of {frame.steps} steps") for count in _shares(frame)]


def _shares(frame: Frame) -> list[int]:
    """Numbers of steps, each once, and fewer than all."""
    counts = dict.fromkeys(max(1, round(share * frame.steps)) for share in SHARES)
    return [count for count in counts if count < frame.steps]


def _spread_counts(frame: Frame) -> list[int]:
    """Those of them that a mask of spread steps may have."""
    return [count for count in _shares(frame) if count >= LEAST_SPREAD]


def both(frame: Frame) -> list[Schedule]:
    """Thresholds, and masks."""
    return [*thresholds(frame), *masks(frame)]


def without_first(grid: Grid) -> Grid:
    """The same with no block that always runs at the start."""
    return lambda frame: grid(Frame(frame.steps, 0, 0))
