"""Products with weights, which torch computes in another way where the weight requires a gradient.

A batch of rows times a matrix is one product of matrices if the rows lie one after the other, or else if the matrix
requires a gradient. What a submodule is handed does not require one, nor does a transpose of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from unittest.mock import patch

import torch
from torch._decomp import decompositions
from torch._subclasses.functional_tensor import FunctionalTensor

_memory: ContextVar[dict[Any, torch.Tensor] | None] = ContextVar("fxcache_trained_memory", default=None)
"""By memory: a tensor in it, which keeps it from being given to another."""


def trained(value: torch.Tensor) -> torch.Tensor:
    """Note that an operand of a submodule requires a gradient where the submodule is called."""
    known = _memory.get()
    if known is not None:
        base = _plain(value)
        known[base.untyped_storage()._cdata] = base
    return value


@contextmanager
def products_with_weights() -> Iterator[None]:
    """Let products with what `trained` has seen, and with views of it, be computed as those with such weights."""
    original, known = decompositions.should_fold, dict[Any, torch.Tensor]()

    def should_fold(one: torch.Tensor, other: torch.Tensor, is_out: bool) -> bool:
        if original(one, other, is_out):
            return True
        large, small = (one, other) if one.dim() >= other.dim() else (other, one)
        return not is_out and large.dim() > 2 >= small.dim() and _plain(small).untyped_storage()._cdata in known

    token = _memory.set(known)
    try:
        with patch.object(decompositions, "should_fold", should_fold):
            yield
    finally:
        _memory.reset(token)


def _plain(value: torch.Tensor) -> torch.Tensor:
    while isinstance(value, FunctionalTensor):
        value = torch._from_functional_tensor(value.elem)
    return value
