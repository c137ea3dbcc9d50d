"""Change the options of a model that is switched on, and begin a new generation with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from torch import nn

from fxcache import checks
from fxcache.configs import CacheConfig, CalibratorConfig, changed_options, check_configs, config_classes
from fxcache.enabled import change, enabled_of, same_graph
from fxcache.errors import OptionError, StateError
from fxcache.options import Options
from fxcache.runtime.attribution import attribution
from fxcache.targets import modules_of, original_of, tensors_of

__all__ = ["refresh_context"]

Target = TypeVar("Target")

_GROUPS = {"cache_config": "method", "calibrator_config": "calibrator"}
"""Names that stand for all options of a group, and the option that chooses its class."""


def refresh_context(
    target: Target,
    cache_config: CacheConfig | None = None,
    calibrator_config: CalibratorConfig | None = None,
    *,
    clear: str | Collection[str] = (),
    **options: Any,
) -> Target:
    """Begin a new generation on a pipeline or a module, with other options from the next call on; return the target.

    Only what is given changes: the fields given to the configs, and `options` by name, which win; of a config for
    another method or calibrator, all its fields. None given for an option is its value None. `clear` names options that
    get their defaults again; ``cache_config`` and ``calibrator_config`` stand there for all options of the group.
    Statistics stay, and a call that is running ends as it began. What only the host reads needs no new graph; anything
    else, one compilation at the next call.

    Raises OptionError for wrong options. Raises StateError where fxcache is not switched on, and for a model compiled
    by hand if it would need another graph; then nothing has changed.

    Example:
        >>> import torch, fxcache
        >>> model = fxcache.enable_cache(torch.nn.Linear(2, 2), max_cached_steps=4)
        >>> fxcache.refresh_context(model, num_inference_steps=20, clear="max_cached_steps") is model
        True
        >>> fxcache.strify(model)
        'DBCache_FautoB0_W8I1M-1MC-1_R0.08_N20_T0O0'
    """
    cleared = (clear,) if isinstance(clear, str) else tuple(clear)
    check_configs(cache_config, calibrator_config)
    for name in cleared:
        if name in options:
            raise OptionError(f"clear={name!r}: {name} is given as well")
    defaults = _cleared(cleared)

    def changed(now: Options) -> Options:
        return now.replace(**{**defaults, **changed_options(now, cache_config, calibrator_config, options)})

    planned = [step for name, module in modules_of(target).items() for step in _plan(name, module, changed)]
    if not planned:
        raise StateError(f"fxcache is not switched on for {type(target).__name__}: call fxcache.enable_cache first")
    for module, base, options_to_come in planned:
        enabled = enabled_of(module)
        if enabled is not None:
            change(module, enabled, options_to_come)
        else:
            attribution.refresh(tensors_of(module), base, options_to_come)
    return target


def _plan(
    name: str, module: nn.Module, changed: Callable[[Options], Options]
) -> list[tuple[nn.Module, Options, Options]]:
    """Return (module, options compiled in, options to come) of everything that has to change."""
    enabled = enabled_of(original_of(module))
    if enabled is not None:
        return [(original_of(module), enabled.compiled[-1], changed(enabled.options))]
    found = []
    for base, options in attribution.options(tensors_of(module)).items():
        wanted, now = changed(options), options.to_dict()
        if not same_graph(base, wanted):
            differing = [key for key, value in wanted.to_dict().items() if value != now[key]]
            raise StateError(
                f"{name} was compiled by torch.compile, and {', '.join(differing)} would need another graph: give the "
                "options to torch.compile again, or switch fxcache on with fxcache.enable_cache"
            )
        found.append((module, base, wanted))
    return found


def _cleared(names: Collection[str]) -> dict[str, Any]:
    """Return the defaults of the options that are named, one by one or as a group."""
    defaults, found = Options().to_dict(), {}
    for name in names:
        if name in _GROUPS:
            kind = _GROUPS[name]
            classes = config_classes(kind).values()
            members = {entry.name for cls in classes for entry in dataclasses.fields(cls)} | {kind}
        elif name in defaults:
            members = {name}
        else:
            raise OptionError(f"clear={name!r}: {checks.nearest(name, [*defaults, *_GROUPS])}")
        found.update({member: defaults[member] for member in members})
    return found
