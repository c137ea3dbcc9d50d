"""The methods of fxcache other than DBCache, with what they have to know of the model measured beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import fxcache
from benchmarks.comparison.entries import Stage, own_config
from benchmarks.comparison.models import twin
from benchmarks.schedules import Schedule

Config = Callable[[Stage, Schedule], Any]


def published(name: str) -> Config:
    """How a method is configured for the one number of a schedule."""
    return {
        "interval": _interval,
        "magcache": _magcache,
        "measured": _measured,
        "teacache": _teacache,
        "teacache-fitted": _fitted_teacache,
        "easycache": _easycache,
    }[name]


def _interval(_: Stage, schedule: Schedule) -> fxcache.IntervalConfig:
    return fxcache.IntervalConfig(cache_interval=int(schedule.threshold or 1))


def _teacache(_: Stage, schedule: Schedule) -> fxcache.TeaCacheConfig:
    return fxcache.TeaCacheConfig(residual_diff_threshold=schedule.threshold)


def _fitted_teacache(stage: Stage, schedule: Schedule) -> fxcache.TeaCacheConfig:
    return _calibration(stage, schedule.steps).teacache_config(residual_diff_threshold=schedule.threshold)


def _magcache(stage: Stage, schedule: Schedule) -> fxcache.MagCacheConfig:
    return _calibration(stage, schedule.steps).magcache_config(residual_diff_threshold=schedule.threshold)


def _measured(stage: Stage, schedule: Schedule) -> fxcache.DBCacheConfig:
    mask = _calibration(stage, schedule.steps).steps_mask(int(schedule.threshold or 1))
    return own_config(stage, replace(schedule, mask="".join(map(str, mask))))


def _easycache(_: Stage, schedule: Schedule) -> fxcache.EasyCacheConfig:
    return fxcache.EasyCacheConfig(residual_diff_threshold=schedule.threshold)


_CALIBRATIONS: dict[tuple[int, int], fxcache.Calibration] = {}


def _calibration(stage: Stage, steps: int) -> fxcache.Calibration:
    """Measured on noise that no picture comes from, once per process and model."""
    key = (id(stage.source), steps)
    if key not in _CALIBRATIONS:
        pipeline = twin(stage.source)
        _CALIBRATIONS[key] = fxcache.calibrate(pipeline, lambda: stage.model.draw(pipeline, -1, 1, steps))
    return _CALIBRATIONS[key]
