"""The configuration objects of the user API: named groups of options, with the names of cache-dit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fxcache.options import Options

__all__ = [
    "CalibratorConfig",
    "DBCacheConfig",
    "DMDCalibratorConfig",
    "FoCaCalibratorConfig",
    "RegressionCalibratorConfig",
    "TaylorSeerCalibratorConfig",
]


@dataclass(frozen=True, kw_only=True)
class _Config:
    """A group of options, checked when it is built."""

    def __post_init__(self) -> None:
        checked = self.to_options()
        for entry in dataclasses.fields(self):
            object.__setattr__(self, entry.name, getattr(checked, entry.name))

    def to_mapping(self) -> dict[str, Any]:
        """Return the options of this group by name."""
        return {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}

    def to_options(self, **extra: Any) -> Options:
        """Return the options of the backend with this group; ``extra`` are further options by name.

        Raises OptionError for a wrong value or an unknown name. A name that both give is taken from ``extra``.
        """
        return Options.from_mapping({**self.to_mapping(), **extra})


@dataclass(frozen=True, kw_only=True)
class DBCacheConfig(_Config):
    """When a step is reused: the policy part of :class:`~fxcache.options.Options`, whose fields it shares.

    Each field means what the option of the same name means; ``python -m fxcache options`` lists them.

    >>> DBCacheConfig(Fn_compute_blocks=1).to_options(inner_backend="eager").resolve_blocks(12)
    (1, 0)
    """

    Fn_compute_blocks: int | None = None
    Bn_compute_blocks: int = 0
    residual_diff_threshold: float = 0.08
    max_warmup_steps: int = 8
    warmup_interval: int = 1
    max_cached_steps: int = -1
    max_continuous_cached_steps: int = -1
    max_accumulated_residual_diff_threshold: float | None = None
    num_inference_steps: int | None = None
    steps_computation_mask: str | Sequence[int] | None = None
    steps_computation_policy: str = "dynamic"
    force_refresh_step_hint: int | None = None
    force_refresh_step_policy: str = "once"
    enable_separate_cfg: bool | None = None
    cfg_compute_first: bool = False
    cfg_diff_compute_separate: bool = True
    indicator: str | None = None
    l1_hidden_states_diff_threshold: float | None = None
    important_condition_threshold: float = 0.0
    downsample_factor: int = 1

    def to_mapping(self) -> dict[str, Any]:
        """Return the options of this group by name."""
        return {**super().to_mapping(), "method": "dbcache"}


@dataclass(frozen=True, kw_only=True)
class CalibratorConfig(_Config):
    """How a reused step is predicted: what all calibrators share. Use one of the classes below."""

    calibrator: ClassVar[str]

    enable_calibrator: bool = True
    enable_encoder_calibrator: bool = True
    calibrator_cache_type: str = "residual"
    calibrator_dtype: Any = None
    calibrator_time: str = "step"

    def to_mapping(self) -> dict[str, Any]:
        """Return the options of this group by name."""
        return {**super().to_mapping(), "calibrator": self.calibrator}


@dataclass(frozen=True, kw_only=True)
class TaylorSeerCalibratorConfig(CalibratorConfig):
    """A polynomial in time through the last computed steps.

    >>> TaylorSeerCalibratorConfig(taylorseer_order=2).to_options().history
    3
    """

    calibrator: ClassVar[str] = "taylorseer"

    taylorseer_order: int = 1


@dataclass(frozen=True, kw_only=True)
class FoCaCalibratorConfig(CalibratorConfig):
    """A predictor and one correction."""

    calibrator: ClassVar[str] = "foca"


@dataclass(frozen=True, kw_only=True)
class DMDCalibratorConfig(CalibratorConfig):
    """A sum of exponentials through the last computed steps."""

    calibrator: ClassVar[str] = "dmd"

    dmd_history: int = 6
    dmd_rank: int = 0
    dmd_ridge: float = 1e-8


@dataclass(frozen=True, kw_only=True)
class RegressionCalibratorConfig(CalibratorConfig):
    """The combination of the last computed steps that gives what the first blocks add now.

    >>> RegressionCalibratorConfig().to_options().forecasts_indicator
    True
    """

    calibrator: ClassVar[str] = "regression"

    regression_history: int = 3
    regression_ridge: float = 1e-4
