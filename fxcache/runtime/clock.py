"""The time of a call, and whether it has gone on or started again.

Three sources, in order of trust: the place of the timestep in its schedule (a view into a longer storage: known
without reading anything), its value where the host can read it, and a clock on the device, for which the host never
waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from fxcache.runtime.identity import version_of

_LARGEST_SCHEDULE_BYTES = 1 << 20
"""A longer storage is no schedule, and would be kept alive for nothing."""


class _Storage(Protocol):
    _cdata: int

    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class Reading:
    """The time of one call as the host knows it."""

    value: float
    """Index in the schedule, or the timestep itself."""
    storage: _Storage | None = None
    """The schedule, held so that its address cannot be given to another."""
    version: int = 0

    def comparable(self, other: Reading) -> bool:
        """Whether both times are on one scale."""
        if self.storage is None or other.storage is None:
            return self.storage is other.storage
        return self.storage._cdata == other.storage._cdata and self.version == other.version


def read_time(source: object, host_readable: Callable[[torch.Tensor], bool]) -> Reading | None:
    """Return the time in `source` (a number or a tensor), or None when only the device knows it."""
    if isinstance(source, (int, float)):
        return Reading(float(source))
    if not isinstance(source, torch.Tensor) or source.numel() == 0 or source.is_complex():
        return None
    schedule = _schedule_of(source)
    if schedule is not None:
        return schedule
    return Reading(_largest(source)) if host_readable(source) else None


def telling(times: Sequence[object]) -> object:
    """Return the first time of a call, or where that is one per token, another one that is a place in a schedule."""
    first = times[0] if times else None
    if not isinstance(first, torch.Tensor) or first.dim() < 2 or first.numel() == first.shape[0]:
        return first
    places = (time for time in times if isinstance(time, torch.Tensor) and _schedule_of(time) is not None)
    return next(places, first)


def on_host(tensor: torch.Tensor) -> bool:
    """Return whether a tensor can be read without waiting for a device."""
    return tensor.device.type == "cpu"


def host_number(source: object, readable: Callable[[torch.Tensor], bool] = on_host) -> float | None:
    """Return a number, or the largest of a tensor that can be read without waiting for a device; None otherwise."""
    if isinstance(source, (int, float)):
        return float(source)
    if not isinstance(source, torch.Tensor) or not source.numel() or source.is_complex() or not readable(source):
        return None
    return _largest(source)


def _largest(source: torch.Tensor) -> float:
    # a single time takes no operator, each of which would cost as much as all the rest
    return float(source.item() if source.numel() == 1 else latest(source).item())


def latest(source: torch.Tensor) -> torch.Tensor:
    """Return the largest time in a tensor of times: single tokens or frames may stay at zero throughout."""
    return source.detach().amax().to(torch.float32 if source.dtype != torch.float64 else torch.float64)


def _schedule_of(source: torch.Tensor) -> Reading | None:
    """Return the index of a one-element view, expanded or not, in the longer storage it belongs to."""
    if source.layout != torch.strided or type(source) is not torch.Tensor:
        return None
    if any(size > 1 and stride != 0 for size, stride in zip(source.shape, source.stride(), strict=True)):
        return None
    storage = source.untyped_storage()
    if not source.element_size() < storage.nbytes() <= _LARGEST_SCHEDULE_BYTES:
        return None
    return Reading(float(source.storage_offset()), storage, version_of(source))


@dataclass
class HostClock:
    """Follows the time of one context on the host; the direction is learnt from its first move."""

    last: Reading | None = None
    direction: float = 0.0

    def reads(self, now: Reading) -> bool:
        """Return whether `now` is the last time once more."""
        return self.last is not None and now.comparable(self.last) and now.value == self.last.value

    def restarts(self, now: Reading, bounded: bool) -> bool:
        """Return whether `now` cannot follow the last time. Where a run's ends are known (`bounded`), it may repeat."""
        if self.last is None:
            return False
        if math.isnan(now.value) or not now.comparable(self.last):
            return True
        move = now.value - self.last.value
        if not math.isfinite(move) or move == 0:
            return not (bounded and move == 0)
        if now.storage is not None and not bounded:
            return move < 0
        return move * self.direction < 0

    def advance(self, now: Reading) -> None:
        """Take `now` as the last time, and learn the direction."""
        if self.last is not None and self.direction == 0 and now.comparable(self.last):
            move = now.value - self.last.value
            self.direction = float((move > 0) - (move < 0))
        self.last = now


class DeviceClock:
    """Follows the time of one context on its device, without the host ever waiting for it.

    The tensor holds direction, last time, steps since the run began, and whether a restart has not been reported yet.
    """

    def __init__(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.tensor = torch.zeros(4, dtype=torch.float32, device=device)

    def begin(self, source: torch.Tensor) -> None:
        """Take the time of the first call of a run."""
        self.tensor.zero_()
        self.tensor[1] = latest(source)

    def advance(self, source: torch.Tensor, repeat_allowed: bool, reported: bool) -> torch.Tensor:
        """Take the time of the next call and return what the graph's decision reads: (direction, previous time, now).

        The size of the direction is one more than the steps since the run began. `reported`: the host knows all
        restarts up to the previous call. One it does not know makes the previous time NaN, so that the decision tells.
        """
        direction, last, steps, pending = self.tensor.unbind()
        now = latest(source).to(torch.float32)
        move = now - last
        restart = (move * direction < 0) | move.isnan()
        if not repeat_allowed:
            restart = restart | (move == 0)
        unknown = restart if reported else restart | (pending != 0)
        steps = torch.where(restart, 0.0, steps + 1)
        sign = torch.where(direction == 0, torch.where(move < 0, -1.0, 1.0), direction)
        clock = torch.stack([sign * (1 + steps), torch.where(unknown, math.nan, last), now])
        learnt = torch.where(restart, 0.0, torch.where(direction == 0, move.sign(), direction))
        self.tensor.copy_(torch.stack([learnt, now, steps, unknown.to(torch.float32)]))
        return clock
