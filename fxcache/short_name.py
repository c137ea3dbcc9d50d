"""The short name of a configuration, as it stands in tables and file names; the spelling is cache-dit's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxcache.api import summary
from fxcache.configs import CacheConfig, CalibratorConfig, changed_options
from fxcache.dialect import short_names
from fxcache.enabled import enabled_of
from fxcache.errors import StateError
from fxcache.options import Options
from fxcache.runtime.attribution import attribution
from fxcache.targets import modules_of, original_of, tensors_of

__all__ = ["strify"]


def strify(target: Any) -> str:
    """Return the short name of options, of a config, of arguments of `enable_cache`, or of what a model follows.

    ``-1`` (no limit) and ``0`` (never) differ, and blocks that nobody has given are ``auto``. A model that has been
    called adds the reused steps of its last context. Transformers with different options are listed with their names.

    Raises StateError where fxcache is not switched on.

    Example:
        >>> from fxcache import DBCacheConfig, DMDCalibratorConfig
        >>> strify(DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, num_inference_steps=8, max_cached_steps=0))
        'DBCache_F1B0_W2I1M0MC-1_R0.08_N8_T0O0'
        >>> strify({"calibrator_config": DMDCalibratorConfig()})
        'DBCache_FautoB0_W8I1M-1MC-1_R0.08_DMDH6'
    """
    if isinstance(target, Options):
        return _name(target)
    if isinstance(target, CacheConfig | CalibratorConfig):
        return _name(target.to_options())
    if isinstance(target, Mapping):
        others = {name: value for name, value in target.items() if name in Options().to_dict()}
        groups = (target.get("cache_config"), target.get("calibrator_config"))
        return _name(Options.from_mapping(changed_options(Options(), *groups, others)))
    named = {}
    for name, module in modules_of(target).items():
        options = _options_of(module)
        if options is not None:
            reused = [context.reused for context in summary(module).contexts][-1:]
            named[name] = _name(options) + (f"_S{reused[0]}" if any(reused) else "")
    if not named:
        raise StateError(f"fxcache is not switched on for {type(target).__name__}: call fxcache.enable_cache first")
    if len(set(named.values())) == 1:
        return next(iter(named.values()))
    return ",".join(f"{name}={short}" for name, short in named.items())


def _options_of(module: Any) -> Options | None:
    enabled = enabled_of(original_of(module))
    if enabled is not None:
        return enabled.options
    return next(iter(attribution.options(tensors_of(module)).values()), None)


def _name(options: Options) -> str:
    first = "auto" if options.Fn_compute_blocks is None else options.Fn_compute_blocks
    mask, hint, separate = options.steps_computation_mask, options.force_refresh_step_hint, options.enable_separate_cfg
    limits = f"M{options.max_cached_steps}MC{options.max_continuous_cached_steps}"
    parts = [
        short_names("method").get(options.method, options.method),
        f"F{first}B{options.Bn_compute_blocks}",
        f"W{options.max_warmup_steps}I{options.warmup_interval}{limits}",
        f"R{options.residual_diff_threshold}",
    ]
    if mask is not None:
        parts.append(f"SCM{''.join(map(str, mask))}_{options.steps_computation_policy}")
    if options.num_inference_steps is not None:
        parts.append(f"N{options.num_inference_steps}")
    if hint is not None:
        parts.append(f"FR{hint}_{options.force_refresh_step_policy}")
    if separate is not None:
        parts.append(f"CFG{int(separate)}")
    return "_".join([*parts, _calibrator(options)])


def _calibrator(options: Options) -> str:
    return {
        None: "T0O0",
        "taylorseer": f"T1O{options.taylorseer_order}",
        "foca": "FoCa",
        "dmd": f"DMDH{options.dmd_history}",
        "regression": f"RegressionH{options.regression_history}",
    }[options.calibrator]
