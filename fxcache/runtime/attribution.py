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

from fxcache.options import Options
from fxcache.runtime.calls import Call, describe, parameters_at, tensors_at
from fxcache.runtime.clock import on_host
from fxcache.runtime.contexts import Context, ModelState
from fxcache.runtime.guidance import follow, is_other_branch, key_of, leader_of, left_by
from fxcache.runtime.identity import Identities
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
    UnitInfo,
    UnitTerms,
)
from fxcache.runtime.models import ModelTable
from fxcache.runtime.records import ModelRecord
from fxcache.runtime.weights import Stamp, stamp_of

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
        stamp = stamp_of(parameters, tensors_at(args, info.roles.numbers))
        with self._lock:
            model = self._table.find(info, parameters)
            if not call.attributable(model.options.num_inference_steps):
                return self._refuse(model, None, Reason.UNATTRIBUTED)
            context = self._context(model, info, call)
            if context.busy:
                return self._refuse(model, context, Reason.BUSY)
            if is_other_branch(call, context):
                return self._refuse(model, context, Reason.OTHER_CONDITIONING)
            if call.repeats(context):
                return self._refuse(model, context, Reason.REPEATED)
            return self._lease(model, context, call, stamp)

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
            context.reused = outcome.reused
            context.reused_units = tuple(unit.reused for unit in outcome.units)
            saved = _saved(context, outcome)
            reason = _reason(lease, outcome)
            record = StepRecord(context.counters.step, reason, outcome.difference, pruned_blocks=saved.blocks)
            context.statistics.add(record, saved.flops)
            _remember(context, lease, outcome, model.options.history)
            context.difference = _compared(model, context, lease, outcome)
            model.policy.after(context.counters, outcome.reused, context.difference)
            context.sizes = outcome.sizes
            if outcome.sizes != lease.sizes:  # the state was not made for what was computed; that of the next call is
                context.forget_stored()

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
        parameters = None if parameters is None else tuple(parameters)
        with self._lock:
            self._table.forget_changes(parameters)
            for model in self._table.having(parameters):
                self._table.forget(model)

    def refresh(self, parameters: Iterable[torch.Tensor], base: Options, options: Options) -> None:
        """Begin a new generation of these parameters' models; their graphs compiled under `base` follow `options`.

        The two may differ only in what does not shape a graph. A call that is running ends as it began.
        """
        with self._lock:
            parameters = tuple(parameters)
            self._table.change(parameters, base, options)
            for model in self._table.having(parameters):
                model.drop_where(lambda _: True)

    def options(self, parameters: Iterable[torch.Tensor]) -> dict[Options, Options]:
        """Return, of the graphs that these parameters' models have called, the options compiled in and those in use."""
        with self._lock:
            return {model.base: model.options for model in self._table.having(parameters)}

    def records(self, parameters: Iterable[torch.Tensor] | None = None) -> list[ModelRecord]:
        """Return the statistics of the models with any of these parameters (None: of all). Touches no device."""
        with self._lock:
            return [model.record() for model in self._table.having(parameters)]

    def _context(self, model: ModelState, info: GraphInfo, call: Call) -> Context:
        """Return the context of a call; the n-th of a step has the n-th where only their order tells them apart."""
        first, separate = key_of(call, model.options), model.options.enable_separate_cfg
        watched = call.conditioning if first.conditioning else ()
        order = 0
        while True:
            context = self._table.context(model, info, first._replace(order=order), call.run, watched)
            if context.owner is not None and not context.busy:
                _abandon(model, context)  # its call has vanished without a word
            if not context.busy and separate is not False and call.is_elsewhere(context):
                context.has_neighbours = True
            elif context.busy or not (separate and call.repeats(context)):
                return context
            order += 1

    def _lease(self, model: ModelState, context: Context, call: Call, stamp: Stamp) -> Lease:
        options = model.options
        leader = None if options.cfg_diff_compute_separate else leader_of(model, context, call)
        left_behind = leader is not None and left_by(context, leader)
        if call.restarts(context, options.num_inference_steps) or left_behind:
            model.restart(context)
        lease = Lease(self._allocate, _Ticket(context, model))
        lease.repeat_allowed = call.repeat_allowed(context.latents)
        clock = call.advance(context)
        context.refresh(options)
        other_weights = context.take_weights(stamp)
        context.owner, context.reused = weakref.ref(lease), None
        model.turns += 1
        context.turn = model.turns
        context.conditioned = None if context.key.conditioning else Identities(call.conditioning)
        lease.store = True
        context.counters.total_steps = call.total_steps(options.num_inference_steps)
        context.counters.step_index = call.step_index
        context.note_steps(options)
        lease.mode, lease.reason = model.policy.decide_before(options, context.counters, context.valid)
        if other_weights:
            lease.reason = Reason.WEIGHTS
        lease.offset, lease.coefficients = model.policy.scale(options, context.counters)
        lease.now = (context.counters.step, call.time(options.calibrator_time))
        if lease.mode is Mode.REUSE and clock is not None and not call.is_announced(context.counters.step):
            lease.mode = Mode.DECIDE  # only the device knows whether this is still the same generation
        if lease.mode is Mode.DECIDE:
            lease.threshold, lease.clock = model.policy.threshold(options), clock
            if leader is not None:
                follow(lease, context, leader)
        elif clock is not None and context.valid and lease.reason in _NEEDS_CLOCK:
            lease.mode, lease.threshold, lease.clock = Mode.DECIDE, -math.inf, clock
        _say_what_is_stored(lease, context, options, leader)
        lease.sizes = context.sizes
        if leader is not None:
            context.leader = (leader.key, leader.era)
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
                _compute_instead(lease, Reason.FIRST)
            context.forget_stored()
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
    lease.units = tuple(UnitTerms(Mode.COMPUTE, (), 0) for _ in lease.units)


def _say_what_is_stored(lease: Lease, context: Context, options: Options, leader: Context | None) -> None:
    """Put the stored steps and the next slot into the lease, per unit if there are several."""
    slots = [ring.next_slot(options.history) for ring in context.rings]
    lease.stored, lease.slot = tuple(context.rings[0].stored), slots[0]
    if not context.units:
        return
    growths = [1.0] * len(slots)
    if lease.reason is Reason.FOLLOWS and leader is not None and leader.reused_units:
        growths = [1.0 if reused else math.nan for reused in leader.reused_units]
    elif lease.mode is Mode.DECIDE and options.observes and options.prune_indicator == "previous":
        growths = [ring.growth(context.counters.step) for ring in context.rings]
    lease.units = tuple(
        UnitTerms(Mode.COMPUTE if math.isnan(growth) else lease.mode, tuple(ring.stored), slot, growth)
        for ring, slot, growth in zip(context.rings, slots, growths, strict=True)
    )
    if all(unit.mode is Mode.COMPUTE for unit in lease.units) and lease.mode is Mode.DECIDE:
        lease.mode, lease.reason, lease.clock = Mode.COMPUTE, Reason.FIRST, None
    if options.enable_dynamic_prune_threshold:
        cap = options.max_dynamic_prune_threshold or 2 * options.residual_diff_threshold
        lease.growing = (options.dynamic_prune_threshold_relax_ratio, cap)


def _remember(context: Context, lease: Lease, outcome: Outcome, entries: int) -> None:
    """Note what the call has stored."""
    step, time = _moment(lease, outcome, context)
    terms = lease.units or (UnitTerms(lease.mode, lease.stored, lease.slot),)
    for number, (ring, term) in enumerate(zip(context.rings, terms, strict=True)):
        if term.stored and not outcome.restarted:
            ring.measured = (step, term.stored[0].step)
        reused = outcome.units[number].reused if outcome.units else outcome.reused
        if not reused:
            ring.remember(Stored(term.slot, step, time), entries)
            context.valid = True


def _compared(model: ModelState, context: Context, lease: Lease, outcome: Outcome) -> float | None:
    """Return the difference of the call, or that of the branch it has followed: what is summed grows with it."""
    if outcome.difference is None and lease.reason is Reason.FOLLOWS and context.leader is not None:
        leader = model.contexts.get(context.leader[0])
        return None if leader is None else leader.difference
    return outcome.difference


def _saved(context: Context, outcome: Outcome) -> UnitInfo:
    """Blocks and operations that the call skipped; the blocks count where they are decided for themselves."""
    if not context.units:
        return UnitInfo(0, context.flops[0] if outcome.reused else 0)
    skipped = [unit for unit, seen in zip(context.units, outcome.units, strict=False) if seen.reused]
    return UnitInfo(sum(unit.blocks for unit in skipped), sum(unit.flops for unit in skipped))


def _abandon(model: ModelState, context: Context) -> None:
    """Forget a call that has not come to its end, and the generation with it."""
    context.owner = None
    if not context.dropped:
        model.restart(context)


def _restart(model: ModelState, context: Context, outcome: Outcome) -> None:
    """The device has seen the time start again, at this call or at one before it that nobody asked about."""
    kept = context.device_clock, context.latents, context.source, context.timestep
    model.restart(context)
    context.device_clock, context.latents, context.source, context.timestep = kept
    if outcome.time is not None and math.isfinite(outcome.time[0]):
        context.counters.step = max(0, round(abs(outcome.time[0])) - 1)
        context.refresh(model.options)


def _moment(lease: Lease, outcome: Outcome, context: Context) -> tuple[int, float | None]:
    """Step and time of the call; a restart that the device has seen has changed the number of the step."""
    return (context.counters.step, lease.now[1]) if outcome.restarted else lease.now


def _reason(lease: Lease, outcome: Outcome) -> Reason:
    if outcome.reused:
        return Reason.REUSED if all(unit.reused for unit in outcome.units) else Reason.PARTLY
    if outcome.restarted:
        return Reason.RESTART
    if lease.mode is not Mode.COMPUTE and outcome.sizes != lease.sizes:
        return Reason.RESIZED
    if lease.mode is Mode.DECIDE and not outcome.finite:
        return Reason.NOT_FINITE
    if outcome.outvoted:
        return Reason.OUTVOTED
    return lease.reason


attribution = Attribution()
"""The contexts of this process."""
