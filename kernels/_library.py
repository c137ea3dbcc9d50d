"""Registration of fxcache's operators in the ``fxcache::`` namespace.

The low-level ``torch.library.Library`` is used on purpose: an operator registered through ``torch.library.custom_op``
costs tens of microseconds per call in Python, these cost a few, and a reused step of a small model runs four of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("fxcache", "DEF")


def register_operator(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define ``fxcache::<schema>`` with one implementation for all devices and a fake one for tracing.

    ``schema`` declares mutation as usual (``Tensor(a!)``); the graph passes and Inductor order the operators by it.
    Every operator takes any strides, so Inductor need not copy a value into another layout first.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fxcache::{name}", fake, lib=_LIBRARY)
