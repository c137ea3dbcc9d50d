"""Tell tensor objects apart: by identity and version, through weak references, never by address alone.

Values are looked at in one case: those of objects that are gone, kept for as long as their run goes on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence

import torch

NO_VERSION = -1
"""Stands for the version of an inference tensor, which has none."""


def version_of(tensor: torch.Tensor) -> int:
    """Return the number of in-place writes autograd has counted, or `NO_VERSION`."""
    return NO_VERSION if tensor.is_inference() else tensor._version


class Identities:
    """The identities of a few tensors at one moment. Compares without keeping the tensors alive."""

    __slots__ = ("key", "refs")

    def __init__(
        self, tensors: Iterable[torch.Tensor], on_death: Callable[[weakref.ref[torch.Tensor]], object] | None = None
    ) -> None:
        tensors = tuple(tensors)
        self.key: tuple[tuple[int, int], ...] = identity_key(tensors)
        self.refs: tuple[weakref.ref[torch.Tensor], ...] = tuple(weakref.ref(tensor, on_death) for tensor in tensors)

    @property
    def alive(self) -> bool:
        """Whether all objects still exist, so that their ids cannot have been given to others."""
        return all(ref() is not None for ref in self.refs)

    @property
    def versioned(self) -> bool:
        """Whether an in-place write to any of the tensors would show."""
        return all(version != NO_VERSION for _, version in self.key)

    def same(self, other: Identities) -> bool:
        """Whether both name the same living objects with the same contents, as far as versions tell."""
        return self.key == other.key and self.alive

    def same_objects(self, key: tuple[tuple[int, int], ...]) -> bool:
        """Whether `key` names the same living objects, whatever was written to them."""
        return (
            len(self.key) == len(key) and all(a[0] == b[0] for a, b in zip(self.key, key, strict=True)) and self.alive
        )


def identity_key(tensors: Sequence[torch.Tensor]) -> tuple[tuple[int, int], ...]:
    """Return (id, version) of each tensor; valid while the caller holds them."""
    return tuple((id(tensor), version_of(tensor)) for tensor in tensors)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the values can be compared with others: no subclass, no sparse or nested layout."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided


class Kept:
    """The values of a few tensors, to be known again when the objects are gone."""

    __slots__ = ("_tensors", "_versions")

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        # nobody counts writes to an inference tensor, also not to what others have of its storage
        self._tensors = tuple(
            tensor.detach().clone() if version_of(tensor) == NO_VERSION else tensor.detach() for tensor in tensors
        )
        self._versions = tuple(version_of(tensor) for tensor in self._tensors)

    def equal(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these have the same values, and what is kept has not been written over. Waits for their device."""
        if len(tensors) != len(self._tensors) or self._versions != tuple(map(version_of, self._tensors)):
            return False
        return all(
            is_plain(tensor)
            and (kept.device, kept.dtype) == (tensor.device, tensor.dtype)
            and torch.equal(kept, tensor)
            for kept, tensor in zip(self._tensors, tensors, strict=True)
        )
