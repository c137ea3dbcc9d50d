"""Every module of the package can be imported, and the examples in its docstrings hold."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import fxcache

MODULES = [
    "fxcache",
    *(
        module.name
        for module in pkgutil.walk_packages(fxcache.__path__, "fxcache.")
        if not module.name.endswith("__main__")
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0
