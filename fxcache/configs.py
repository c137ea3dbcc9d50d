"""The configuration objects of the user API: named groups of options, with the names of cache-dit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fxcache.errors import OptionError
from fxcache.options import Options

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "CacheConfig",
    "CalibratorConfig",
    "DBCacheConfig",
    "DBPruneConfig",
    "DMDCalibratorConfig",
    "FoCaCalibratorConfig",
    "RegressionCalibratorConfig",
    "TaylorSeerCalibratorConfig",
    "changed_options",
    "check_configs",
    "config_classes",
]


@dataclass(frozen=True, kw_only=True)
class _Config:
    """A group of options, checked when it is built."""

    def __post_init__(self) -> None:
        checked = self.to_options()
        for entry in dataclasses.fields(self):
            object.__setattr__(self, entry.name, getattr(checked, entry.name))

    def __new__(cls, **given: Any) -> Self:
        """Remember which fields were given: where options are changed, only these are."""
        config = super().__new__(cls)
        object.__setattr__(config, "_given", frozenset(given))
        return config

    def to_mapping(self) -> dict[str, Any]:
        """Return the options of this group by name."""
        return {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}

    def given(self) -> dict[str, Any]:
        """Return the options whose fields were given when this was built, and what the class stands for.

        >>> DBCacheConfig(max_warmup_steps=4).given()
        {'max_warmup_steps': 4, 'method': 'dbcache'}
        """
        left_out = {entry.name for entry in dataclasses.fields(self)} - self.__dict__["_given"]
        return {name: value for name, value in self.to_mapping().items() if name not in left_out}

    def reset(self, **fields: Any) -> Self:
        """Return a config of this class with these fields, all others not given."""
        return type(self)(**fields)

    def to_options(self, **extra: Any) -> Options:
        """Return the options of the backend with this group; ``extra`` are further options by name.

        Raises OptionError for a wrong value or an unknown name. A name that both give is taken from ``extra``.
        """
        return Options.from_mapping({**self.to_mapping(), **extra})


@dataclass(frozen=True, kw_only=True)
class CacheConfig(_Config):
    """When a step is reused: what the configs of all methods are. Use the one of a method."""

    method: ClassVar[str]

    Fn_compute_blocks: int | None = None
    Bn_compute_blocks: int = 0
    max_warmup_steps: int = 8
    last_steps: int = 0
    max_cached_steps: int = -1
    max_continuous_cached_steps: int = -1
    num_inference_steps: int | None = None
    steps_computation_mask: str | Sequence[int] | None = None
    steps_computation_policy: str = "dynamic"
    force_refresh_step_hint: int | None = None
    force_refresh_step_policy: str = "once"
    enable_separate_cfg: bool | None = None
    cfg_compute_first: bool = False
    cfg_diff_compute_separate: bool = True

    def to_mapping(self) -> dict[str, Any]:
        """Return the options of this group by name."""
        return {**super().to_mapping(), "method": self.method}


@dataclass(frozen=True, kw_only=True)
class DBCacheConfig(CacheConfig):
    """When a step is reused: the policy part of :class:`~fxcache.options.Options`, whose fields it shares.

    Each field means what the option of the same name means; ``python -m fxcache options`` lists them.

    >>> DBCacheConfig(Fn_compute_blocks=1).to_options(inner_backend="eager").resolve_blocks(12)
    (1, 0)
    """

    method: ClassVar[str] = "dbcache"

    residual_diff_threshold: float = 0.08
    warmup_interval: int = 1
    max_accumulated_residual_diff_threshold: float | None = None
    indicator: str | None = None
    l1_hidden_states_diff_threshold: float | None = None
    important_condition_threshold: float = 0.0
    downsample_factor: int = 1


@dataclass(frozen=True, kw_only=True)
class DBPruneConfig(DBCacheConfig):
    """When a block is reused: DBCache's rules, for every block by itself.

    >>> DBPruneConfig(Fn_compute_blocks=1, non_prune_block_ids=[4]).to_options().resolve_units(6)
    [(1, 2), (2, 3), (3, 4), (5, 6)]
    """

    method: ClassVar[str] = "dbprune"

    non_prune_block_ids: Sequence[int] = ()
    prune_indicator: str = "input"
    prune_group: int = 1
    enable_dynamic_prune_threshold: bool = False
    max_dynamic_prune_threshold: float | None = None
    dynamic_prune_threshold_relax_ratio: float = 1.25
    force_reduce_calibrator_vram: bool = False


@dataclass(frozen=True, kw_only=True)
class CalibratorConfig(_Config):
    """How a reused step is predicted: what all calibrators share. Use one of the classes below."""

    calibrator: ClassVar[str]

    enable_calibrator: bool = True
    enable_encoder_calibrator: bool = True
    calibrator_cache_type: str = "residual"
    calibrator_dtype: Any = None
    calibrator_time: str = "step"
    calibrator_max_gain: float | None = 3.0

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
    regression_ridge: float = 0.03


def config_classes(kind: str) -> dict[str, type[_Config]]:
    """Return the config classes by the value that they stand for; `kind` is the option ``method`` or ``calibrator``."""
    found, waiting = {}, [_Config]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if hasattr(cls, kind):
            found[getattr(cls, kind)] = cls
    return found


def check_configs(cache_config: object, calibrator_config: object) -> None:
    """Raise OptionError for something else than a config of its kind."""
    if cache_config is not None and not isinstance(cache_config, CacheConfig):
        raise OptionError.of("cache_config", cache_config, "None or a config of a method, such as DBCacheConfig()")
    if calibrator_config is not None and not isinstance(calibrator_config, CalibratorConfig):
        raise OptionError.of("calibrator_config", calibrator_config, "None or a calibrator's config")


def changed_options(
    base: Options,
    cache_config: CacheConfig | None,
    calibrator_config: CalibratorConfig | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what two configs and further options, which win, change of the options that a model follows.

    Of a config for the same method or calibrator only the given fields count, of another one all.
    """
    check_configs(cache_config, calibrator_config)
    found: dict[str, Any] = {}
    for kind, config in (("method", cache_config), ("calibrator", calibrator_config)):
        if config is not None:
            same = getattr(config, kind) == getattr(base, kind)
            found.update(config.given() if same else config.to_mapping())
    return {**found, **options}
