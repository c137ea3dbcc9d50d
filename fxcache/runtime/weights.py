"""Tell whether a model still has the weights that a stored step was computed with, without reading any of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter

import torch

from fxcache.runtime.identity import version_of

Stamp = tuple[float, ...]

_version = attrgetter("_version")


def stamp_of(weights: Sequence[torch.Tensor], numbers: Sequence[torch.Tensor] = ()) -> Stamp:
    """Return what stays equal for the same tensors as long as none is written to, as far as autograd counts writes.

    `numbers` are numbers of the model that come as tensors on the CPU; their values count.
    """
    with torch._C.DisableTorchFunctionSubclass():
        try:
            # a large model has a thousand, at every call: no loop of Python's own
            writes = tuple(map(_version, weights))
        except RuntimeError:  # inference tensors have none
            writes = tuple(map(version_of, weights))
    return (*writes, *(number.item() for number in numbers))


def note_write(tensors: Iterable[torch.Tensor]) -> None:
    """Let a write that autograd has not seen count as one; inference tensors cannot show it."""
    torch.autograd.graph.increment_version([tensor for tensor in tensors if not tensor.is_inference()])
