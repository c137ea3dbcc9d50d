"""What fxcache says of graphs that it leaves alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fxcache.errors import RefusalWarning


@contextmanager
def refusals() -> Iterator[list[str]]:
    """Collect the refusals inside; they are there when it ends."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += [str(warning.message) for warning in caught if issubclass(warning.category, RefusalWarning)]
