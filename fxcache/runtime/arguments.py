"""What a module was called with: behind a graph break, a graph gets values in between and not these.

`noting` wraps the compiled call of a module; `arguments` says what the running call of it means to a denoising loop.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import weakref
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

LATENT_NAMES = frozenset({"hidden_states", "audio_hidden_states", "sample", "latents", "latent", "noisy_latents"})
TIME_NAMES = frozenset(
    "t time times tau sigma sigmas noise_level noise_levels noise_labels c_noise log_snr logsnr".split()
)
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def is_time(name: str) -> bool:
    """Say whether an argument of this name is the time or the noise level."""
    return "timestep" in name.lower() or name.lower() in TIME_NAMES


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call of a module, by what they mean."""

    latents: tuple[torch.Tensor, ...]
    timestep: object
    conditioning: tuple[torch.Tensor, ...]
    """All other tensors: more than what tells branches apart, so that none are taken for one."""
    rest: tuple[Hashable, ...]
    """Numbers, switches and other objects; two calls that differ in them are not steps of one branch."""


class _ModuleCall:
    """One running call of a module."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._module, self._args, self._kwargs = module, args, kwargs
        self.serial = next(_serials)

    @functools.cached_property
    def arguments(self) -> Arguments | None:
        """None where the arguments do not fit what the module says it takes."""
        try:
            bound = inspect.signature(self._module.forward).bind(*self._args, **self._kwargs)
        except (TypeError, ValueError):
            return None
        given: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            variable = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            given.update(value if variable else {name: value})
        named = [name for name in given if name in LATENT_NAMES]
        latents = named or list(given)[:1]
        times = [name for name in given if is_time(name) and name not in latents]
        others = {name: value for name, value in given.items() if name not in latents and name not in times}
        leaves, structure = pytree.tree_flatten(others)
        return Arguments(
            latents=_tensors([given[name] for name in latents]),
            timestep=given[times[0]] if times else None,
            conditioning=tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor)),
            rest=(str(structure), *(_comparable(leaf) for leaf in leaves if not isinstance(leaf, torch.Tensor))),
        )


_serials = itertools.count(1)
_running: ContextVar[_ModuleCall | None] = ContextVar("fxcache_module_call", default=None)


def noting(module: nn.Module, compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled call of a module, noting its arguments while it runs. The module is not kept alive."""
    reference = weakref.ref(module)

    def call(*args: Any, **kwargs: Any) -> Any:
        owner = reference()
        if owner is None:
            return compiled(*args, **kwargs)
        before = _running.set(_ModuleCall(owner, args, kwargs))
        try:
            return compiled(*args, **kwargs)
        finally:
            _running.reset(before)

    return call


def arguments() -> Arguments | None:
    """Return what the running call of a module was given, if it is noted."""
    call = _running.get()
    return call.arguments if call is not None else None


def call_serial() -> int | None:
    """Return a number that no other call of a module has; None where calls are not noted."""
    call = _running.get()
    return call.serial if call is not None else None


def _tensors(values: object) -> tuple[torch.Tensor, ...]:
    return tuple(leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor))


def _comparable(value: object) -> Hashable:
    """Return what is equal for equal values, or for one and the same object that still exists."""
    if isinstance(value, _PLAIN):
        return (type(value), value)
    try:
        reference = weakref.ref(value)
        hash(reference)
    except TypeError:
        return object()  # equal to nothing
    return reference
