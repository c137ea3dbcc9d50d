"""The callable that Dynamo gets: it finds the context of the call, runs the graph and notes what the graph decided."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fxcache.kernels import CONTROL_SIZE, Ask, Control
from fxcache.runtime.attribution import Attribution
from fxcache.runtime.interface import GraphInfo, Lease, Mode, Outcome, Stored, TensorSpec, UnitOutcome, UnitTerms


class Link:
    """Hands the lease of the running call from the outer callable to the inner one, past AOTAutograd, per thread."""

    def __init__(self) -> None:
        self._local = threading.local()

    def open(self, lease: Lease) -> None:
        """Begin a call."""
        self._local.lease = lease
        self._local.control = None

    def lease(self) -> Lease:
        """Lease of the call that runs on this thread."""
        lease: Lease = self._local.lease
        return lease

    def control(self, values: torch.Tensor | None = None) -> torch.Tensor | None:
        """Note the control vector of the running call, or return it."""
        if values is not None:
            self._local.control = values
        noted: torch.Tensor | None = self._local.control
        return noted

    def close(self) -> None:
        """End a call: nothing of it stays referenced."""
        self._local.lease = self._local.control = None


def with_state(
    compiled: Callable[[list[Any]], Any],
    link: Link,
    specs_of: Callable[[Sequence[object]], tuple[TensorSpec, ...]],
    device: torch.device,
    units: int = 0,
    sizes: int = 0,
) -> Callable[[list[Any]], Any]:
    """Wrap a compiled graph whose last inputs are control, clock and state, so that it takes the original inputs.

    The inputs added are, in this order: control, health, clock, the state tensors; all but control and clock
    belong to the context and come from its lease. ``units``: rows of the control, where it has rows. ``sizes``: how
    many sizes only the graph knows; ``specs_of`` gets them behind the inputs, as the call before has met them.
    """
    no_clock: list[torch.Tensor] = []

    def boxed(flat: list[Any]) -> Any:
        lease = link.lease()
        lease.sizes = lease.sizes if len(lease.sizes) == sizes else (0,) * sizes
        health, *state = lease.state(specs_of([*flat, *lease.sizes] if sizes else flat))
        control = _control_for(lease, units)
        link.control(control)
        if lease.clock is None and not no_clock:
            no_clock.append(torch.zeros(3, dtype=torch.float32, device=device))
        clock = no_clock[0] if lease.clock is None else lease.clock
        full = [*flat, control, health, clock, *state]
        flat.clear()
        return compiled(full)

    boxed._boxed_call = True  # type: ignore[attr-defined]
    return boxed


_ASK = {Mode.COMPUTE: Ask.COMPUTE, Mode.DECIDE: Ask.DECIDE, Mode.REUSE: Ask.REUSE}


def _control_for(lease: Lease, units: int) -> torch.Tensor:
    if not units:
        return torch.tensor(_told(lease, lease.mode, lease.stored, lease.slot), dtype=torch.float64)
    rows = []
    for unit in lease.units or (UnitTerms(Mode.COMPUTE, (), 0),) * units:
        told = _told(lease, unit.mode, unit.stored, unit.slot)
        rows.append([*told, unit.growth, *lease.growing])
    return torch.tensor(rows, dtype=torch.float64)


def _told(lease: Lease, mode: Mode, stored: Sequence[Stored], slot: int) -> list[float]:
    told = [0.0] * CONTROL_SIZE
    told[Control.MODE] = float(_ASK[mode])
    told[Control.STORE] = float(lease.store)
    told[Control.THRESHOLD] = lease.threshold
    told[Control.OFFSET], told[Control.TERMS] = lease.offset, float(len(lease.coefficients))
    told[Control.COEFFICIENTS : Control.COEFFICIENTS + len(lease.coefficients)] = lease.coefficients
    told[Control.CHECK_CLOCK] = float(lease.clock is not None)
    told[Control.REPEAT_ALLOWED] = float(lease.repeat_allowed)
    told[Control.SLOT] = float(slot)
    told[Control.COUNT] = float(len(stored))
    told[Control.SIZES : Control.SIZES + len(lease.sizes)] = map(float, lease.sizes)
    if mode is not Mode.COMPUTE:
        times, told[Control.NOW] = lease.times_of(stored)
        told[Control.TIMES : Control.TIMES + len(times)] = times
        told[Control.SLOTS : Control.SLOTS + len(times)] = [float(entry.slot) for entry in stored]
    return told


def read_outcome(control: torch.Tensor | None, lease: Lease) -> Outcome:
    """Translate what the ``decide`` operator wrote; no device is touched."""
    if control is None or (lease.mode is Mode.COMPUTE and not lease.sizes):
        return Outcome()
    met = () if lease.units else tuple(map(int, control[Control.SIZES : Control.SIZES + len(lease.sizes)].tolist()))
    if lease.mode is Mode.COMPUTE:
        return Outcome(sizes=met)
    rows = control.tolist()
    units: tuple[UnitOutcome, ...] = ()
    if lease.units:
        units = tuple(
            UnitOutcome(bool(row[Control.REUSED]), _difference(row), bool(row[Control.FINITE])) for row in rows
        )
    seen = rows[0] if lease.units else rows
    known = [unit.difference for unit in units if unit.difference is not None]
    return Outcome(
        reused=any(unit.reused for unit in units) if units else bool(seen[Control.REUSED]),
        difference=(sum(known) / len(known) if known else None) if units else _difference(seen),
        finite=all(unit.finite for unit in units) if units else bool(seen[Control.FINITE]),
        restarted=bool(seen[Control.RESTARTED]),
        time=None
        if lease.clock is None
        else (seen[Control.CLOCK_DIRECTION], seen[Control.CLOCK_PREVIOUS], seen[Control.CLOCK_NOW]),
        units=units,
        sizes=met,
        outvoted=any(bool(row[Control.OUTVOTED]) for row in (rows if lease.units else [rows])),
    )


def _difference(seen: Sequence[float]) -> float | None:
    return seen[Control.DIFFERENCE] if seen[Control.MEASURED] else None


class CompiledCall:
    """One rewritten graph as Dynamo calls it, with the tensors as the caller passed them.

    Their identities tell generations and branches apart, which is why this sits outside of AOTAutograd.
    """

    def __init__(self, compiled: Callable[..., Any], info: GraphInfo, link: Link, attribution: Attribution) -> None:
        self._compiled = compiled
        self.info = info
        self._link = link
        self._attribution = attribution

    def __call__(self, *args: Any) -> Any:
        """Run one step."""
        lease = self._attribution.begin(self.info, args)
        self._link.open(lease)
        try:
            result = self._compiled(*args)
            outcome = read_outcome(self._link.control(), lease)
        except BaseException:
            self._attribution.abort(lease)
            raise
        finally:
            self._link.close()
        self._attribution.end(lease, outcome)
        return result
