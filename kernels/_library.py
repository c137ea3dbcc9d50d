"""Registration of fxcache's operators in the ``fxcache::`` namespace.

Every operator stays one node of the graph, whatever it launches; ``torch.library.triton_op`` would show Inductor the
kernels instead. On purpose:

- whether a kernel is launched is known on the host: a step that is not stored launches nothing;
- Inductor must neither compute an update twice nor move a read of the state behind it, and schemas say all it needs;
- the low-level ``torch.library.Library`` adds a few microseconds to a call, where ``torch.library.custom_op`` and
  ``triton_op`` add tens when they mutate, and a reused step of a small model runs four of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("fxcache", "DEF")


def register_operator(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define ``fxcache::<schema>`` with one implementation for all devices and a fake one for tracing.

    ``schema`` declares mutation as usual (``Tensor(a!)``); the graph passes and Inductor order the operators by it.
    Values of the model may have any strides, so Inductor need not copy a value into another layout first.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fxcache::{name}", fake, lib=_LIBRARY)
