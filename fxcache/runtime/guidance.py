"""Calls of one step: told apart by order where nothing else does it, and led by the first of them if that is asked for.

A branch that follows does not compare anything: what it does is known on the host, from what the first branch of the
step has done. It never reuses without state of its own, and its own rules for warmup and limits come first.
"""

from __future__ import annotations

import math

from fxcache.options import Options
from fxcache.runtime.calls import Call
from fxcache.runtime.contexts import Context, ContextKey, ModelState, TimeSource
from fxcache.runtime.identity import Identities
from fxcache.runtime.interface import Lease, Mode, Reason


def key_of(call: Call, options: Options) -> ContextKey:
    """Return the key of the call's context, in which conditioning is left out if it is not to tell branches apart.

    That needs a run whose end is known and a time that the host knows: otherwise another image, or the other branch of
    the same step, could not be told from the next step.
    """
    ignored = options.enable_separate_cfg is False and call.run.bounded
    if ignored and call.source in (TimeSource.INDEX, TimeSource.HOST):
        return call.key._replace(conditioning=())
    return call.key


def is_other_branch(call: Call, context: Context) -> bool:
    """Return whether conditioning that should not tell branches apart turns out to do it.

    Once it has, only the conditioning that was there first goes on.
    """
    before = context.conditioned
    if before is None or before.same(Identities(call.conditioning)):
        return False
    context.ambiguous = context.ambiguous or call.same_time(context)
    return context.ambiguous


def leader_of(model: ModelState, context: Context, call: Call) -> Context | None:
    """Return the branch that was called first in the step of this call, if it has made its call since ours."""
    others = [
        other
        for other in model.contexts.values()
        if other is not context
        and other.key.run == context.key.run
        and other.turn > context.turn
        and other.reused is not None
        and _same_step(call, context, other)
    ]
    return min(others, key=lambda other: other.turn, default=None)


def left_by(context: Context, leader: Context) -> bool:
    """Return whether the leader has begun another generation since it last led this branch."""
    return context.leader is not None and context.leader[0] == leader.key and context.leader[1] != leader.era


def follow(lease: Lease, context: Context, leader: Context) -> None:
    """Turn a call that would decide into one that does what the leader has done.

    A leader that has reused has had its clock looked at. That holds for this branch too, if it has been led in the same
    generation before; otherwise the device looks at this clock as well.
    """
    lease.reason = Reason.FOLLOWS
    if not leader.reused:
        lease.mode, lease.threshold, lease.clock = Mode.COMPUTE, 0.0, None
    elif lease.clock is None or context.leader == (leader.key, leader.era):
        lease.mode, lease.clock = Mode.REUSE, None
    else:
        lease.threshold = math.inf


def _same_step(call: Call, context: Context, other: Context) -> bool:
    """Return whether the last call of another branch was made in the step of this one."""
    if other.latents is None or call.source is not other.source:
        return False
    same_latents = bool(other.latents.key) and other.latents.same(call.latents)
    if call.source in (TimeSource.INDEX, TimeSource.HOST):
        # A copy for every call is no other step. But outside of a known run it may be another request, and where the
        # time stands still, as it does for a scheduler of second order, the next evaluation.
        same_size = other.key.activations[:1] == call.activations[:1]
        copied = call.run.bounded and same_size and not call.same_time(context)
        return call.same_time(other) and (same_latents or copied)
    return same_latents and other.latents.versioned
