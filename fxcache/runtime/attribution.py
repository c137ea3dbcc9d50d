"""Find the context a call belongs to, and keep its state: the one entry of the runtime for compiled calls.

A call belongs to a run (see `generation`), and in it to a branch: the name the user gave, or else the name the
pipeline gave together with the identity of the conditioning tensors. Where the time of a context turns back, another
generation has begun in it. In doubt a call is computed and leaves no trace.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from fxcache.runtime.calls import Call, describe, parameters_at
from fxcache.runtime.clock import on_host
from fxcache.runtime.contexts import Context, ModelState
from fxcache.runtime.interface import (
    GraphInfo,
    InputRoles,
    Lease,
    Mode,
    Outcome,
    Reason,
    StepRecord,
    Stored,
    TensorSpec,
)
from fxcache.runtime.models import ModelTable
from fxcache.runtime.records import ModelRecord

__all__ = [
    "Attribution",
    "GraphInfo",
    "InputRoles",
    "Lease",
    "Mode",
    "ModelState",
    "Outcome",
    "Reason",
    "StepRecord",
    "TensorSpec",
    "attribution",
]

_NEEDS_CLOCK = frozenset({Reason.MAX_CACHED, Reason.MAX_CONTINUOUS, Reason.MAX_ACCUMULATED, Reason.LAST})
"""Reasons to compute that end with the generation: the host must learn when that is."""


@dataclass(frozen=True)
class _Ticket:
    """What a lease stands for."""

    context: Context
    model: ModelState


class Attribution:
    """All contexts of all models. Thread-safe; holds models, conditioning tensors and runs weakly.

    `host_readable` says which timestep tensors may be read without waiting for a device.
    """

    def __init__(self, host_readable: Callable[[torch.Tensor], bool] = on_host) -> None:
        self._host_readable = host_readable
        self._table = ModelTable()
        self._lock = self._table.mailbox

    def begin(self, info: GraphInfo, args: Sequence[object]) -> Lease:
        """Return the lease for a call of this graph with these flat inputs."""
        call = describe(info, args, self._host_readable)
        parameters = parameters_at(args, info.roles.parameters)
        with self._lock:
            model = self._table.find(info, parameters)
            if not call.attributable(info.options.num_inference_steps):
                return self._refuse(model, None, Reason.UNATTRIBUTED)
            context = self._table.context(model, info, call.key, call.run, call.conditioning)
            if context.busy:
                return self._refuse(model, context, Reason.BUSY)
            if context.owner is not None:
                _abandon(model, context)  # its call has vanished without a word
            if call.repeats(context):
                return self._refuse(model, context, Reason.REPEATED)
            return self._lease(model, context, call)

    def end(self, lease: Lease, outcome: Outcome) -> None:
        """Take note of what the call did."""
        ticket, lease.ticket = lease.ticket, None
        if not isinstance(ticket, _Ticket):
            return
        context, model = ticket.context, ticket.model
        with self._lock:
            context.owner = None
            if context.dropped:
                return
            if not lease.store:  # its tensors did not fit
                context.statistics.reasons[lease.reason] += 1
                return
            context.reported = lease.mode is Mode.DECIDE
            if outcome.restarted:
                _restart(model, context, outcome)
            context.statistics.add(StepRecord(context.counters.step, _reason(lease, outcome), outcome.difference))
            if not outcome.reused:
                context.remember(Stored(lease.slot, *_moment(lease, outcome, context)), model.options.history)
            model.policy.after(context.counters, outcome.reused, outcome.difference)

    def abort(self, lease: Lease) -> None:
        """The call raised: its context's state is worth nothing, and its generation most likely over."""
        ticket, lease.ticket = lease.ticket, None
        if isinstance(ticket, _Ticket):
            with self._lock:
                _abandon(ticket.model, ticket.context)

    def reset(self, parameters: Iterable[torch.Tensor] | None = None) -> None:
        """Drop the contexts of the models with any of these parameters (None: of all); the statistics are kept."""
        with self._lock:
            for model in self._table.having(parameters):
                model.drop_where(lambda _: True)

    def forget(self, parameters: Iterable[torch.Tensor] | None = None) -> None:
        """Drop everything known of the models with any of these parameters (None: of all)."""
        with self._lock:
            for model in self._table.having(parameters):
                self._table.forget(model)

    def records(self, parameters: Iterable[torch.Tensor] | None = None) -> list[ModelRecord]:
        """Return the statistics of the models with any of these parameters (None: of all). Touches no device."""
        with self._lock:
            return [model.record() for model in self._table.having(parameters)]

    def _lease(self, model: ModelState, context: Context, call: Call) -> Lease:
        if call.restarts(context, model.options.num_inference_steps):
            model.restart(context)
        lease = Lease(self._allocate, _Ticket(context, model))
        lease.repeat_allowed = call.repeat_allowed(context.latents)
        clock = call.advance(context)
        context.owner = weakref.ref(lease)
        lease.store = True
        context.counters.total_steps = call.total_steps(model.options.num_inference_steps)
        context.counters.step_index = call.step_index
        context.note_steps(model.options)
        lease.mode, lease.reason = model.policy.decide_before(model.options, context.counters, context.valid)
        lease.offset, lease.coefficients = model.policy.scale(model.options, context.counters)
        lease.now = (context.counters.step, call.time(model.options.calibrator_time))
        lease.stored, lease.slot = tuple(context.stored), context.next_slot(model.options.history)
        if lease.mode is Mode.REUSE and clock is not None:
            lease.mode = Mode.DECIDE  # only the device knows whether this is still the same generation
        if lease.mode is Mode.DECIDE:
            lease.threshold, lease.clock = model.policy.threshold(model.options), clock
        elif clock is not None and context.valid and lease.reason in _NEEDS_CLOCK:
            lease.mode, lease.threshold, lease.clock = Mode.DECIDE, -math.inf, clock
        return lease

    def _refuse(self, model: ModelState, context: Context | None, reason: Reason) -> Lease:
        (model.refused if context is None else context.statistics.reasons)[reason] += 1
        lease = Lease(self._allocate)
        lease.reason = reason
        return lease

    def _allocate(self, lease: Lease, specs: tuple[TensorSpec, ...]) -> list[torch.Tensor]:
        ticket = lease.ticket
        if not lease.store or not isinstance(ticket, _Ticket):
            return _scratch(specs)
        context = ticket.context
        if context.specs == specs:
            return list(context.tensors)
        with self._lock:
            if context.valid:  # never read what was stored in another form
                context.valid = False
                _compute_instead(lease, Reason.FIRST)
            context.stored, context.counters.computed_steps = [], 0
            context.tensors, context.specs = [], ()
            fits = not context.dropped and ticket.model.make_room(context, sum(spec.nbytes for spec in specs))
        if not fits:
            lease.store = False
            _compute_instead(lease, Reason.TOO_LARGE)
            return _scratch(specs)
        # zeros made in inference mode could not be written outside of it
        with torch.inference_mode(False):
            tensors = [torch.zeros(spec.shape, dtype=spec.dtype, device=spec.device) for spec in specs]
        with self._lock:
            if not context.dropped:
                context.tensors, context.specs = tensors, specs
        return list(tensors)


def _scratch(specs: tuple[TensorSpec, ...]) -> list[torch.Tensor]:
    return [torch.empty(spec.shape, dtype=spec.dtype, device=spec.device) for spec in specs]


def _compute_instead(lease: Lease, reason: Reason) -> None:
    lease.mode, lease.reason, lease.threshold, lease.clock = Mode.COMPUTE, reason, 0.0, None
    lease.stored, lease.slot = (), 0


def _abandon(model: ModelState, context: Context) -> None:
    """Forget a call that has not come to its end, and the generation with it."""
    context.owner = None
    if not context.dropped:
        model.restart(context)


def _restart(model: ModelState, context: Context, outcome: Outcome) -> None:
    """The device has seen the time start again, at this call or at one before it that nobody asked about."""
    clock, latents, source = context.device_clock, context.latents, context.source
    model.restart(context)
    context.device_clock, context.latents, context.source = clock, latents, source
    if outcome.time is not None and math.isfinite(outcome.time[0]):
        context.counters.step = max(0, round(abs(outcome.time[0])) - 1)


def _moment(lease: Lease, outcome: Outcome, context: Context) -> tuple[int, float | None]:
    """Step and time of the call; a restart that the device has seen has changed the number of the step."""
    return (context.counters.step, lease.now[1]) if outcome.restarted else lease.now


def _reason(lease: Lease, outcome: Outcome) -> Reason:
    if outcome.reused:
        return Reason.REUSED
    if outcome.restarted:
        return Reason.RESTART
    if lease.mode is Mode.DECIDE and not outcome.finite:
        return Reason.NOT_FINITE
    return lease.reason


attribution = Attribution()
"""The contexts of this process."""
