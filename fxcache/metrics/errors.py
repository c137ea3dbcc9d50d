"""What can be wrong with pictures, and what a metric can lack; and the import of what only one metric needs."""

from __future__ import annotations

import importlib
from typing import Any

from fxcache.errors import FxcacheError

__all__ = ["InputError", "UnavailableError", "require"]


class InputError(FxcacheError, ValueError):
    """Pictures, videos or prompts cannot be read or do not fit together."""


class UnavailableError(FxcacheError, RuntimeError):
    """A metric lacks something here: a library, its weights, prompts, or enough of a picture."""


def require(
    module: str, package: str, user: str, install: str = 'pip install ".[metrics]" in the folder of fxcache'
) -> Any:
    """Return a module, or raise UnavailableError that says who needs it and how it is installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnavailableError(f"{user} needs {package}, which cannot be imported ({error}): {install}") from error
