"""The published methods of fxcache as contestants: interval, TeaCache, MagCache and EasyCache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import fxcache
from benchmarks.digits.sample import load_pipeline
from benchmarks.methods import CachedRun, Method, Setting
from benchmarks.schedules import Schedule

FAMILY = "published"
SEED = 77
"""Of the noise that is calibrated with: no other picture comes from it."""


@dataclass(frozen=True)
class _Kind:
    """How a method is set up for one number, and the numbers."""

    config: Callable[[Setting, float], Any]
    numbers: tuple[float, ...]
    word: str


@lru_cache(maxsize=4)
def calibration(steps: int, weights: Path) -> fxcache.Calibration:
    """What MagCache and TeaCache have to know of the model, measured on one digit per class."""
    pipeline = load_pipeline(weights)
    pipeline.set_progress_bar_config(disable=True)
    return fxcache.calibrate(
        pipeline, lambda: pipeline(range(10), steps, generator=torch.Generator().manual_seed(SEED), output_type="pt")
    )


LIMITS = (0.1, 0.15, 0.2, 0.3, 0.4)
KINDS: dict[str, _Kind] = {
    "interval": _Kind(
        lambda _, steps: fxcache.IntervalConfig(cache_interval=int(steps)), (2, 3, 4, 5, 6), "every {:.0f} steps"
    ),
    "teacache": _Kind(lambda _, limit: fxcache.TeaCacheConfig(residual_diff_threshold=limit), LIMITS, "sum < {:g}"),
    "teacache-fitted": _Kind(
        lambda setting, limit: calibration(setting.steps, setting.weights).teacache_config(
            residual_diff_threshold=limit
        ),
        LIMITS,
        "fitted sum < {:g}",
    ),
    "magcache": _Kind(
        lambda setting, limit: calibration(setting.steps, setting.weights).magcache_config(
            residual_diff_threshold=limit, max_continuous_cached_steps=-1
        ),
        (0.06, 0.12, 0.24, 0.48, 0.96),
        "error <= {:g}",
    ),
    "easycache": _Kind(lambda _, limit: fxcache.EasyCacheConfig(residual_diff_threshold=limit), LIMITS, "sum < {:g}"),
}


def published_methods() -> list[Method]:
    """One contestant per method; all reuse what they reuse as it is, without a calibrator."""
    return [_method(name, kind) for name, kind in KINDS.items()]


def _method(name: str, kind: _Kind) -> Method:
    def schedules(setting: Setting) -> list[Schedule]:
        return [
            Schedule(FAMILY, setting.steps, first_blocks=0, threshold=number, words=kind.word.format(number))
            for number in kind.numbers
        ]

    def run(setting: Setting, schedule: Schedule) -> CachedRun:
        assert schedule.threshold is not None
        return CachedRun(setting, schedule, config=kind.config(setting, schedule.threshold))

    return Method(f"fxcache-{name}", schedules, run)
