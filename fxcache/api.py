"""The user API: switch the cache on and off for a pipeline or a module, look at what it did, say whose call it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from fxcache.configs import CalibratorConfig, DBCacheConfig
from fxcache.errors import OptionError, StateError
from fxcache.options import Options
from fxcache.runtime.arguments import noting
from fxcache.runtime.attribution import attribution
from fxcache.runtime.generation import BranchContext, Generation
from fxcache.runtime.signals import install
from fxcache.summary import Summary, summarize

__all__ = ["context", "disable_cache", "enable_cache", "generation", "reset", "summary"]

Target = TypeVar("Target")

_COMPILE_ARGUMENTS = ("fullgraph", "dynamic")
"""Arguments of `torch.compile` that `enable_cache` hands on."""
_MARK = "_fxcache_enabled"


@dataclass(frozen=True)
class _Enabled:
    """Kept on the compiled call itself: it lives and dies with it, and the model carries no attribute of ours."""

    previous: Callable[..., Any] | None
    options: Options


def enable_cache(
    target: Target,
    cache_config: DBCacheConfig | None = None,
    calibrator_config: CalibratorConfig | None = None,
    **options: Any,
) -> Target:
    """Compile the transformers of a pipeline, or a bare module, in place with the fxcache backend; return the target.

    `cache_config` says when a step is reused, `calibrator_config` how it is then predicted (None: as the last computed
    one). `options` are the backend's options, which win over both, and `fullgraph` and `dynamic` as in `torch.compile`.
    The module keeps its class, its state dict and its name. Enabling again replaces the options.

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
    compile_arguments = {name: options.pop(name) for name in _COMPILE_ARGUMENTS if name in options}
    if cache_config is not None and not isinstance(cache_config, DBCacheConfig):
        raise OptionError.of("cache_config", cache_config, "None or a DBCacheConfig")
    if calibrator_config is not None and not isinstance(calibrator_config, CalibratorConfig):
        raise OptionError.of("calibrator_config", calibrator_config, "None or a calibrator's config")
    groups = [group.to_mapping() for group in (cache_config, calibrator_config) if group is not None]
    checked = Options.from_mapping({key: value for group in [*groups, options] for key, value in group.items()})
    modules = _transformers(target)
    install()
    for name, module in modules.items():
        if _original(module) is not module:
            raise StateError(
                f"{name} is already wrapped by torch.compile: give enable_cache the original module, "
                'or give torch.compile backend="fxcache"'
            )
    for module in modules.values():
        _disable(module)
        previous = module._compiled_call_impl
        module.compile(backend="fxcache", options=checked.to_dict(), **compile_arguments)
        assert module._compiled_call_impl is not None
        module._compiled_call_impl = noting(module, module._compiled_call_impl)
        setattr(module._compiled_call_impl, _MARK, _Enabled(previous, checked))
    return target


def disable_cache(target: Target) -> Target:
    """Undo `enable_cache`: modules run as before it, state and statistics are dropped; return the target.

    What is not enabled is left alone.
    """
    for module in _modules(target).values():
        _disable(_original(module))
    return target


def summary(target: object) -> Summary:
    """Return what the cache did for a pipeline or a module, however fxcache was switched on for it."""
    return summarize(
        (name, record)
        for name, module in _modules(target).items()
        for record in attribution.records((*module.parameters(), *module.buffers()))
    )


def reset(target: object) -> None:
    """Drop all state kept for a pipeline or a module, so that the next call of every branch is computed.

    The statistics stay.
    """
    for module in _modules(target).values():
        attribution.reset((*module.parameters(), *module.buffers()))


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


def _disable(module: nn.Module) -> None:
    enabled = getattr(module._compiled_call_impl, _MARK, None)
    if isinstance(enabled, _Enabled):
        module._compiled_call_impl = enabled.previous
        attribution.forget((*module.parameters(), *module.buffers()))


def _original(module: nn.Module) -> nn.Module:
    """Return the module inside the wrapper that `torch.compile` returns."""
    original = module.__dict__.get("_modules", {}).get("_orig_mod")
    return original if isinstance(original, nn.Module) else module


def _modules(target: object) -> dict[str, nn.Module]:
    """Return the modules of a target by name: the components of a pipeline, or the module itself."""
    if isinstance(target, nn.Module):
        return {type(_original(target)).__name__: target}
    components = getattr(target, "components", None)
    if not isinstance(components, Mapping):
        raise OptionError.of("target", target, "a diffusers pipeline or a torch.nn.Module")
    return {str(name): value for name, value in components.items() if isinstance(value, nn.Module)}


def _transformers(target: object) -> dict[str, nn.Module]:
    modules = _modules(target)
    if isinstance(target, nn.Module):
        return modules
    found = {name: module for name, module in modules.items() if "transformer" in name}
    if not found:
        names = ", ".join(modules) or "none"
        raise OptionError(
            f"target={type(target).__name__}: expected a component with 'transformer' in its name; its modules are: "
            f"{names}. Give enable_cache the module itself."
        )
    return found
