"""Modules on which `enable_cache` has switched fxcache on: the options they follow and those compiled in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fxcache import loading
from fxcache.options import Options
from fxcache.runtime.arguments import noting
from fxcache.runtime.attribution import attribution
from fxcache.targets import tensors_of
from fxcache.tracing import keeping_whole

__all__ = ["COMPILE_ARGUMENTS", "Enabled", "change", "disable", "enable", "enabled_of", "same_graph"]

_GUARD_FILTER = "guard_filter_fn"
_KNOWN_ARGUMENTS = inspect.signature(torch.compile).parameters
COMPILE_ARGUMENTS = (
    *(name for name in loading.COMPILE_ARGUMENTS if name in _KNOWN_ARGUMENTS),
    _GUARD_FILTER,
)
"""Arguments of `torch.compile` that are handed on, as far as this torch has them; the last is one of its options."""
_MARK = "_fxcache_enabled"
_READ_WHEN_COMPILING = ("dump_dir", "on_refusal", "trace_once")
"""Options that shape no graph, but that a compiled one no longer asks for."""


@dataclass(frozen=True)
class Enabled:
    """Kept on the compiled call itself: it lives and dies with it, and the model carries no attribute of ours."""

    previous: Callable[..., Any] | None
    """What was there before `enable_cache`."""
    arguments: Mapping[str, Any]
    """Further arguments of `torch.compile`."""
    options: Options
    """Those in use."""
    compiled: tuple[Options, ...]
    """Those that graphs were compiled under, the present ones last; Dynamo knows their graphs again."""


def enabled_of(module: nn.Module) -> Enabled | None:
    """Return what `enable_cache` has noted on a module."""
    enabled = getattr(module._compiled_call_impl, _MARK, None)
    return enabled if isinstance(enabled, Enabled) else None


def enable(module: nn.Module, options: Options, arguments: Mapping[str, Any]) -> None:
    """Compile a module in place under these options; what was enabled before is undone."""
    disable(module)
    _compile(module, Enabled(module._compiled_call_impl, arguments, options, (options,)))


def disable(module: nn.Module) -> None:
    """Undo `enable`, and drop state and statistics."""
    enabled = enabled_of(module)
    if enabled is not None:
        module._compiled_call_impl = enabled.previous
        attribution.forget(tensors_of(module))


def change(module: nn.Module, enabled: Enabled, options: Options) -> None:
    """Let an enabled module follow other options from its next call on, and begin a new generation.

    It is compiled again only if no graph that it had can serve them.
    """
    base = next((known for known in enabled.compiled if same_graph(known, options)), options)
    compiled = (*(known for known in enabled.compiled if known is not base), base)
    changed = replace(enabled, options=options, compiled=compiled)
    if base is enabled.compiled[-1]:
        setattr(module._compiled_call_impl, _MARK, changed)
    else:
        _compile(module, changed)
    attribution.refresh(tensors_of(module), base, options)


def same_graph(options: Options, others: Options) -> bool:
    """Return whether graphs compiled under the one can serve the other."""
    alike = all(getattr(options, name) == getattr(others, name) for name in _READ_WHEN_COMPILING)
    return alike and options.fingerprint() == others.fingerprint()


def _compile(module: nn.Module, enabled: Enabled) -> None:
    options, arguments = enabled.compiled[-1].to_dict(), dict(enabled.arguments)
    if _GUARD_FILTER in arguments:
        options[_GUARD_FILTER] = arguments.pop(_GUARD_FILTER)  # torch.compile takes it out again
    module.compile(backend="fxcache", options=options, **arguments)
    assert module._compiled_call_impl is not None
    module._compiled_call_impl = noting(module, keeping_whole(module._compiled_call_impl))
    setattr(module._compiled_call_impl, _MARK, enabled)
