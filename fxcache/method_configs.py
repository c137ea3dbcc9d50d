"""The configuration objects of the methods beside DBCache: the options that each one has, with its own defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fxcache.configs import CacheConfig

__all__ = ["EasyCacheConfig", "IntervalConfig", "MagCacheConfig", "TeaCacheConfig"]


@dataclass(frozen=True, kw_only=True)
class _MethodConfig(CacheConfig):
    """What the methods share: the first and the last step are computed."""

    max_warmup_steps: int = 1
    last_steps: int = 1


@dataclass(frozen=True, kw_only=True)
class IntervalConfig(_MethodConfig):
    """Every n-th step is computed.

    >>> IntervalConfig(cache_interval=4).to_options().observes
    False
    """

    method: ClassVar[str] = "interval"

    cache_interval: int = 3


@dataclass(frozen=True, kw_only=True)
class TeaCacheConfig(_MethodConfig):
    """The changes of what the first block reads are summed until the threshold.

    >>> TeaCacheConfig(rescale_coefficients=[2, 0]).rescale_coefficients
    (2.0, 0.0)
    """

    method: ClassVar[str] = "teacache"

    residual_diff_threshold: float = 0.08
    rescale_coefficients: Sequence[float] = (1.0, 0.0)
    downsample_factor: int = 1


@dataclass(frozen=True, kw_only=True)
class MagCacheConfig(_MethodConfig):
    """The error that a table of magnitudes foretells is summed until the threshold; the table has to be given.

    >>> MagCacheConfig(magnitude_ratios=[1, 0.99, 0.98]).to_options().method
    'magcache'
    """

    method: ClassVar[str] = "magcache"

    magnitude_ratios: Sequence[float]
    residual_diff_threshold: float = 0.08
    retention_ratio: float = 0.2
    max_continuous_cached_steps: int = 3


@dataclass(frozen=True, kw_only=True)
class EasyCacheConfig(_MethodConfig):
    """The estimated changes of what the trunk gives are summed until the threshold.

    >>> EasyCacheConfig().to_options().resolve_blocks(12)
    (0, 0)
    """

    method: ClassVar[str] = "easycache"

    residual_diff_threshold: float = 0.08
