"""What `make test` leaves to `make test-all`."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest


def some_slow(names: Iterable[str], slow: Container[str]) -> list[Any]:
    """The names as parameters, those of the second argument marked slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in names]
