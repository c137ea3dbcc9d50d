"""fxcache: a ``torch.compile`` backend that reuses the trunk of a diffusion transformer between steps."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fxcache.configs import (
    DBCacheConfig,
    DBPruneConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    RegressionCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from fxcache.errors import FxcacheError, OptionError, Refusal, RefusalError, RefusalWarning, StateError
from fxcache.loading import load_configs, save_configs
from fxcache.method_configs import EasyCacheConfig, IntervalConfig, MagCacheConfig, TeaCacheConfig
from fxcache.modifiers import ParamsModifier
from fxcache.options import Options
from fxcache.steps import steps_mask
from fxcache.version import __version__

if TYPE_CHECKING:
    from fxcache.api import context, disable_cache, enable_cache, generation, reset, summary
    from fxcache.calibration import Calibration, calibrate
    from fxcache.explain import Explanation, explain
    from fxcache.refresh import refresh_context
    from fxcache.short_name import strify
    from fxcache.summary import Summary

__all__ = [
    "Calibration",
    "DBCacheConfig",
    "DBPruneConfig",
    "DMDCalibratorConfig",
    "EasyCacheConfig",
    "Explanation",
    "FoCaCalibratorConfig",
    "FxcacheError",
    "IntervalConfig",
    "MagCacheConfig",
    "OptionError",
    "Options",
    "ParamsModifier",
    "Refusal",
    "RefusalError",
    "RefusalWarning",
    "RegressionCalibratorConfig",
    "StateError",
    "Summary",
    "TaylorSeerCalibratorConfig",
    "TeaCacheConfig",
    "__version__",
    "calibrate",
    "context",
    "disable_cache",
    "enable_cache",
    "explain",
    "generation",
    "load_configs",
    "refresh_context",
    "reset",
    "save_configs",
    "steps_mask",
    "strify",
    "summary",
]

_HOMES = {
    "Calibration": "fxcache.calibration",
    "Explanation": "fxcache.explain",
    "Summary": "fxcache.summary",
    "calibrate": "fxcache.calibration",
    "explain": "fxcache.explain",
    "refresh_context": "fxcache.refresh",
    "strify": "fxcache.short_name",
    **dict.fromkeys(("context", "disable_cache", "enable_cache", "generation", "reset", "summary"), "fxcache.api"),
}
"""What needs torch, by the module that has it; loaded on first use, so that ``import fxcache`` is quick."""


class _Package(ModuleType):
    """The package itself: ``summary`` and ``explain`` stay functions when the modules of these names load."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "metrics":  # a package, which importing it puts here
        return importlib.import_module("fxcache.metrics")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
