"""How many bytes the tensors take that an object holds, wherever in it they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn


def bytes_of(objects: Iterable[Any]) -> int:
    """Bytes of all tensors reachable through containers and attributes, storage that is shared once; no modules."""
    seen: set[int] = set()
    storages: dict[int, int] = {}
    stack = list(objects)
    while stack:
        each = stack.pop()
        if id(each) in seen or isinstance(each, (nn.Module, type, str, bytes, int, float)):
            continue
        seen.add(id(each))
        if isinstance(each, torch.Tensor):
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(each, Mapping):
            stack.extend(each.values())
        elif isinstance(each, (list, tuple, set, frozenset)):
            stack.extend(each)
        else:
            stack.extend(getattr(each, "__dict__", {}).values())
    return sum(storages.values())
