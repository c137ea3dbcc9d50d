"""Tell whether a model still has the weights that a stored step was computed with, without reading any of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import attrgetter, itemgetter
from typing import Any

import torch

from fxcache.runtime.identity import version_of

Stamp = Hashable
"""Equal for two calls with the same tensors if none was written to in between, as far as autograd counts writes."""

_version = attrgetter("_version")


def stamp_reader(weights: Sequence[int], numbers: Sequence[int] = ()) -> Callable[[Sequence[Any]], Stamp]:
    """Return what reads the stamp of a call from the flat inputs of its graph.

    `weights` are the positions of parameters, buffers and other tensors of the model, `numbers` those of numbers of the
    model, which come as tensors on the CPU.
    """
    pick, pick_numbers = _picker(weights), _picker(numbers)

    def stamp(flat: Sequence[Any]) -> Stamp:
        tensors = pick(flat)
        with torch._C.DisableTorchFunctionSubclass():
            try:
                # a large model has a thousand, at every call; versions only grow, so their sum shows every write
                writes = sum(map(_version, tensors))
            except RuntimeError:  # inference tensors have none
                writes = sum(map(version_of, tensors))
        return (writes, *(number.item() for number in pick_numbers(flat)))

    return stamp


def note_write(tensors: Iterable[torch.Tensor]) -> None:
    """Let a write that autograd has not seen count as one; inference tensors cannot show it."""
    torch.autograd.graph.increment_version([tensor for tensor in tensors if not tensor.is_inference()])


def _picker(positions: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    if len(positions) < 2:
        return lambda flat: tuple(flat[position] for position in positions)
    return itemgetter(*positions)
