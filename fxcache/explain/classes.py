"""Find a class by name and build it without memory."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxcache.checks import nearest
from fxcache.errors import OptionError

_LIBRARY = "diffusers"


def find_class(name: str) -> type[nn.Module]:
    """Return the module class ``name`` of diffusers, or ``package.module:Class``.

    Raises OptionError, with the nearest name, where there is none.
    """
    home, colon, attribute = name.rpartition(":")
    try:
        library = importlib.import_module(home if colon else _LIBRARY)
    except ImportError as error:
        raise OptionError(f"class {name!r}: cannot import {home if colon else _LIBRARY}: {error}") from error
    found = getattr(library, attribute, None) if attribute in dir(library) else None
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        near = nearest(attribute, _module_names(library, attribute))
        raise OptionError(f"{library.__name__} has no module class {attribute!r}: {near}")
    return found


def build(cls: type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    """Build the class on the meta device, in eval mode; a wrong or missing argument is an OptionError."""
    parameters = inspect.signature(cls.__init__).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    known = [name for name in parameters if name != "self"]
    for key in config:
        if key not in known and not takes_any and not key.startswith("_"):
            raise OptionError(f"{cls.__name__} has no argument {key!r}: {nearest(key, known)}")
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with torch.device("meta"):
            module = cls(**given)
    except Exception as error:
        raise OptionError(
            f"{cls.__name__} cannot be built with this configuration: {type(error).__name__}: {_first_line(error)}"
            " (--config FILE.json gives its arguments)"
        ) from error
    return module.to("meta").eval()


def _module_names(library: Any, wanted: str) -> list[str]:
    """Names that may be meant: an attribute of a lazy library is not loaded for it."""
    part = "Transformer" if library.__name__ == _LIBRARY else ""
    names = [name for name in dir(library) if name[:1].isupper() and part in name]
    return names if len(names) < 200 or not wanted else [name for name in names if name[0] == wanted[0]]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
