"""What a user points at: a pipeline, or one module, wrapped by `torch.compile` or not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fxcache.errors import OptionError

__all__ = ["modules_of", "original_of", "tensors_of", "transformers_of"]


def modules_of(target: object) -> dict[str, nn.Module]:
    """Return the modules of a target by name: the components of a pipeline, or the module itself."""
    if isinstance(target, nn.Module):
        return {type(original_of(target)).__name__: target}
    components = getattr(target, "components", None)
    if not isinstance(components, Mapping):
        raise OptionError.of("target", target, "a diffusers pipeline or a torch.nn.Module")
    return {str(name): value for name, value in components.items() if isinstance(value, nn.Module)}


def transformers_of(target: object) -> dict[str, nn.Module]:
    """Return the module, or the components of a pipeline that are called transformers, by name and in their order.

    Raises OptionError if there is none.
    """
    modules = modules_of(target)
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


def original_of(module: nn.Module) -> nn.Module:
    """Return the module inside the wrapper that `torch.compile` returns."""
    original = module.__dict__.get("_modules", {}).get("_orig_mod")
    return original if isinstance(original, nn.Module) else module


def tensors_of(module: nn.Module) -> tuple[torch.Tensor, ...]:
    """Return the parameters and buffers, by which the runtime knows a model."""
    return (*module.parameters(), *module.buffers())
