"""The user API: switch the cache on and off for a pipeline or a module, look at what it did, say whose call it is."""

from __future__ import annotations

from typing import Any, TypeVar

from fxcache.configs import CacheConfig, CalibratorConfig, check_configs
from fxcache.dialect import without_foreign
from fxcache.enabled import COMPILE_ARGUMENTS, disable, enable
from fxcache.errors import StateError
from fxcache.modifiers import Modifiers, chosen_modifiers
from fxcache.options import Options
from fxcache.runtime.attribution import attribution
from fxcache.runtime.generation import BranchContext, Generation
from fxcache.runtime.signals import install
from fxcache.summary import Summary, summarize
from fxcache.targets import modules_of, original_of, tensors_of, transformers_of

__all__ = ["context", "disable_cache", "enable_cache", "generation", "reset", "summary"]

Target = TypeVar("Target")


def enable_cache(
    target: Target,
    cache_config: CacheConfig | None = None,
    calibrator_config: CalibratorConfig | None = None,
    params_modifiers: Modifiers | None = None,
    **options: Any,
) -> Target:
    """Compile the transformers of a pipeline, or a bare module, in place with the fxcache backend; return the target.

    `cache_config` says when a step is reused, `calibrator_config` how it is then predicted (None: as the last computed
    one). `options` are the backend's options, which win over both, and as in `torch.compile`: `fullgraph`, `dynamic`,
    `recompile_limit` and `isolate_recompiles` where this torch has them, and `guard_filter_fn`.
    `params_modifiers` says what differs for single transformers of a pipeline, by name or in their order. The module
    keeps its class, its state dict and its name. Enabling again replaces the options.

    Raises OptionError for wrong options or a target without a transformer, StateError for one that
    `torch.compile` has already wrapped.

    Example:
        >>> import torch, fxcache
        >>> model = torch.nn.Linear(2, 2)
        >>> fxcache.enable_cache(model, residual_diff_threshold=0.12, dynamic=True) is model
        True
        >>> config = fxcache.TaylorSeerCalibratorConfig(taylorseer_order=1)
        >>> fxcache.enable_cache(model, calibrator_config=config) is model
        True
        >>> fxcache.disable_cache(model) is model
        True
    """
    options = without_foreign(options)
    compile_arguments = {name: options.pop(name) for name in COMPILE_ARGUMENTS if name in options}
    check_configs(cache_config, calibrator_config)
    groups = [group.to_mapping() for group in (cache_config, calibrator_config) if group is not None]
    common = Options.from_mapping({key: value for group in [*groups, options] for key, value in group.items()})
    modules = transformers_of(target)
    chosen = chosen_modifiers(list(modules), params_modifiers)
    changed = {name: common.replace(**modifier.changes(common)) for name, modifier in chosen.items()}
    install()
    for name, module in modules.items():
        if original_of(module) is not module:
            raise StateError(
                f"{name} is already wrapped by torch.compile: give enable_cache the original module, "
                'or give torch.compile backend="fxcache"'
            )
    for name, module in modules.items():
        enable(module, changed.get(name, common), compile_arguments)
    return target


def disable_cache(target: Target) -> Target:
    """Undo `enable_cache`: modules run as before it, state and statistics are dropped; return the target.

    What is not enabled is left alone.
    """
    for module in modules_of(target).values():
        disable(original_of(module))
    return target


def summary(target: object) -> Summary:
    """Return what the cache did for a pipeline or a module, however fxcache was switched on for it."""
    return summarize(
        (name, record)
        for name, module in modules_of(target).items()
        for record in attribution.records(tensors_of(module))
    )


def reset(target: object) -> None:
    """Drop all state kept for a pipeline or a module, so that the next call of every branch is computed.

    The statistics stay.
    """
    for module in modules_of(target).values():
        attribution.reset(tensors_of(module))


def generation(name: str | None = None, num_inference_steps: int | None = None) -> Generation:
    """Return one denoising run, to be entered around its calls; see `Generation`.

    `num_inference_steps` is a hint: a scheduler of second order calls the model more often.
    """
    return Generation(name, num_inference_steps)


def context(name: str, step_index: int | None = None, num_inference_steps: int | None = None) -> BranchContext:
    """Return a context manager that says which branch, and if known which step, the calls inside it are.

    Overrides all that fxcache finds out by itself. A step index that does not grow begins another generation; so does
    the call after `num_inference_steps`, where neither step nor generation is given.
    """
    return BranchContext(name, step_index, num_inference_steps)
