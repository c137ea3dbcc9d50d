"""``fxcache.explain``: look at what the cache would do with a module, without compiling anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fxcache.configs import CacheConfig
from fxcache.errors import FxcacheError, OptionError
from fxcache.explain.analysis import describe
from fxcache.explain.capture import capture_call
from fxcache.explain.classes import build, find_class
from fxcache.explain.report import Explanation
from fxcache.explain.search import find_inputs
from fxcache.options import Options

__all__ = ["Explanation", "explain", "explain_class"]


def explain(
    module: nn.Module,
    /,
    *args: Any,
    fxcache_config: CacheConfig | None = None,
    fxcache_options: Mapping[str, Any] | Options | None = None,
    fxcache_dynamic: bool | None = None,
    **kwargs: Any,
) -> Explanation:
    """Say what fxcache would do with a call of the module: trunk, regions, work, state, or the refusal.

    Nothing is compiled. The module is traced without gradients, on whatever device it is; on the meta device that
    takes no memory. A module that traces whole is not run; one with graph breaks runs once.

    ``fxcache_config`` and ``fxcache_options`` are the policy and the options as for `enable_cache`, by default those
    that the module was enabled with; ``fxcache_dynamic`` is the ``dynamic`` of ``torch.compile``. All other arguments
    go to the module.

    Raises OptionError for wrong options, also for more first and last blocks than the trunk has.

    Example:
        >>> import torch, fxcache
        >>> print(fxcache.explain(torch.nn.Linear(2, 2), torch.zeros(1, 2)).refusal.reason)
        no chained stack of repeated blocks...
    """
    original = module.__dict__.get("_modules", {}).get("_orig_mod", module) if isinstance(module, nn.Module) else None
    if not isinstance(original, nn.Module):
        raise OptionError.of("module", module, "a torch.nn.Module, such as the transformer of a pipeline")
    options = _options(original, fxcache_config, fxcache_options)
    return describe(type(original).__name__, capture_call(original, args, kwargs, options, fxcache_dynamic), options)


def explain_class(
    name: str,
    config: Mapping[str, Any] | None = None,
    options: Options | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Explanation:
    """Explain a class by name, built on the meta device with ``config`` over its defaults, at a realistic size.

    ``name`` is a class of diffusers or ``package.module:Class``. Example inputs are found by trying; ``inputs`` gives
    some or all of them: a shape, ``{"shape": [...], "dtype": "int64"}``, ``{"value": ...}`` for anything that is no
    tensor, or a list or mapping of these.

    Raises OptionError for an unknown class, an impossible configuration, and inputs that were not found; FxcacheError
    for a model whose trace needs the values of tensors.
    """
    module = build(find_class(name), dict(config or {}))
    kwargs = find_inputs(module, dict(inputs or {}))
    chosen = options or Options()
    try:
        found = capture_call(module, (), kwargs, chosen)
    except FxcacheError:
        raise
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        raise FxcacheError(
            f"{name} cannot be traced without data: {type(error).__name__}: {first}"
            " (fxcache.explain takes a module with weights and real inputs)"
        ) from error
    return describe(type(module).__name__, found, chosen)


def _options(module: nn.Module, config: CacheConfig | None, options: Mapping[str, Any] | Options | None) -> Options:
    """Options as given; those that the module was enabled with when none are given."""
    if config is None and options is None:
        enabled = getattr(getattr(module, "_compiled_call_impl", None), "_fxcache_enabled", None)
        return getattr(enabled, "options", None) or Options()
    if config is not None and not isinstance(config, CacheConfig):
        raise OptionError.of("fxcache_config", config, "None or a config of a method, such as DBCacheConfig()")
    if isinstance(options, Options):
        if config is not None:
            raise OptionError("fxcache_config, fxcache_options: expected one of them when the options are complete")
        return options
    given = dict(options or {})
    return config.to_options(**given) if config is not None else Options.from_mapping(given)
