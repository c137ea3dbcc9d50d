"""Contexts: the state of one branch of one run on one model, and the bounded table of them."""

from __future__ import annotations

import itertools
import math
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable
from enum import Enum
from typing import NamedTuple

import torch

from fxcache.options import Options
from fxcache.policies import Counters, Policy, policy_of
from fxcache.runtime.clock import DeviceClock, HostClock
from fxcache.runtime.identity import Identities, Kept
from fxcache.runtime.interface import GraphInfo, Lease, Reason, Stored, TensorSpec
from fxcache.runtime.records import MAX_ENDED_KEPT, ContextRecord, ModelRecord, Statistics
from fxcache.runtime.weights import Stamp

LAST_STEPS_UNKNOWN = "last_steps={} has no effect: the number of steps is not known"

ActivationSignature = tuple[tuple[tuple[int, ...], torch.dtype, torch.device] | None, ...]

_eras = itertools.count()


class TimeSource(Enum):
    """What the order of a context's calls is read from."""

    INDEX = "a step index somebody gave"
    HOST = "a time the host knows"
    DEVICE = "a time only the device knows"
    NONE = "nothing"


class ContextKey(NamedTuple):
    """What makes two calls share state."""

    run: int
    explicit: str | None
    """Name given by `fxcache.context`; the next two are then empty."""
    name: str | None
    """Name given by the pipeline."""
    conditioning: tuple[tuple[int, int], ...]
    signature: str
    activations: ActivationSignature
    order: int = 0
    """Place in the step, where its calls are about parts of one picture, or nothing else tells them apart."""
    arguments: tuple[Hashable, ...] = ()
    """What else the model was called with, where its graphs do not show it."""


class Ring:
    """The computed steps that are stored of one unit of the trunk, in histories of so many entries."""

    def __init__(self) -> None:
        self.stored: list[Stored] = []
        """Those that can be read, newest first."""
        self.measured: tuple[int, int] | None = None
        """The last step at which a difference was taken, and the step it was taken to."""

    def next_slot(self, entries: int) -> int:
        """Return where a history of so many entries takes the next step: a free slot, or that of the oldest."""
        taken = {stored.slot for stored in self.stored}
        return next((slot for slot in range(entries) if slot not in taken), self.stored[-1].slot if self.stored else 0)

    def remember(self, stored: Stored, entries: int) -> None:
        """Note that a step was stored, in place of what its slot held."""
        kept = [other for other in self.stored if other.slot != stored.slot]
        self.stored = [stored, *kept][:entries]

    def growth(self, step: int) -> float:
        """Return what the last difference is multiplied with to hold for this step: it grows with the distance."""
        if self.measured is None or not self.stored:
            return math.nan
        at, to = self.measured
        return (step - self.stored[0].step) / (at - to)


class Context:
    """State, counters and clock of one (run, branch, graph structure, shapes)."""

    def __init__(
        self,
        key: ContextKey,
        info: GraphInfo,
        threshold: float,
        generation: str,
        branch: str,
        conditioning: Identities,
    ) -> None:
        self.key = key
        self.turn = 0
        """Number of its last call among those of the model."""
        self.ambiguous = False
        """Whether calls of one step came with different conditioning, although it does not tell branches apart."""
        # not the graph's description itself: it would never die, and its end is the end of a model without parameters
        self.flops = (info.middle_flops, info.total_flops)
        self.threshold = threshold
        self.trunk = info.trunk
        self.units = info.units
        self.generation = generation
        self.branch = branch
        self.conditioning = conditioning
        self.kept: Kept | None = None
        """The values of its conditioning, where a call may come with others of the same values."""
        self.passed_over = 0
        """New branches of its kind since its conditioning is gone."""
        self.specs: tuple[TensorSpec, ...] = ()
        self.tensors: list[torch.Tensor] = []
        self.owner: weakref.ref[Lease] | None = None
        self.dropped = False
        self.segment = -1
        self.statistics = Statistics()
        self.notes: tuple[str, ...] = ()
        self.weights: Stamp = ()
        """Those of the last call."""
        self.restart()

    @property
    def nbytes(self) -> int:
        """Bytes of the state tensors."""
        return sum(spec.nbytes for spec in self.specs)

    @property
    def busy(self) -> bool:
        """Whether a call is using this context."""
        return self.owner is not None and self.owner() is not None

    def restart(self) -> None:
        """Begin step 0 of another generation: nothing stored may be read."""
        self.segment += 1
        self.era = next(_eras)
        """Number of this generation among those of all contexts."""
        self.valid = False
        self.rings = [Ring() for _ in self.units or "1"]
        """What is stored, per unit of the trunk that is decided for itself, or in all."""
        self.counters = Counters()
        self.reused: bool | None = None
        """What the last call did; None before its end."""
        self.difference: float | None = None
        """What the last call compared, or the branch that led it."""
        self.reused_units: tuple[bool, ...] = ()
        """The same per unit, where the trunk has several and the graph was asked."""
        self.leader: tuple[ContextKey, int] | None = None
        """The branch that led it last, and the era of that one."""
        self.conditioned: Identities | None = None
        """The conditioning of the previous call, where it does not tell branches apart."""
        self.has_neighbours = self.key.order > 0
        """Whether calls at one time are about other parts of the picture."""
        self.timestep: Identities | None = None
        """Of the previous call, where the host does not know its time."""
        self.has_moved = False
        """Whether there was a call at another time than the first one."""
        self.sizes: tuple[int, ...] = ()
        """Those that depend on data, as met by the previous call."""
        self.host_clock = HostClock()
        self.device_clock: DeviceClock | None = None
        self.reported = True
        """Whether the host knows all restarts its device clock has seen."""
        self.step_index: int | None = None
        self.latents: Identities | None = None
        """Of the previous call; None before the first."""
        self.source = TimeSource.NONE

    def forget_stored(self) -> None:
        """Nothing stored may be read any more."""
        self.valid = False
        self.counters.computed_steps = 0
        self.rings = [Ring() for _ in self.rings]

    def take_weights(self, stamp: Stamp) -> bool:
        """Note the weights of a call; drop what is stored of others, to warm up again, and return whether there was."""
        changed = self.valid and self.weights != stamp
        self.weights = stamp
        if changed:
            self.forget_stored()
            self.counters = Counters(step=self.counters.step, begun=self.counters.step)
        return changed

    def refresh(self, options: Options) -> None:
        """Drop what is stored if `force_refresh_step_hint` names the next step, or one since the last call."""
        hint, step = options.force_refresh_step_hint, self.counters.step
        last = 0 if hint is None or step < hint else hint
        if hint is not None and options.force_refresh_step_policy == "repeat":
            last = step - step % hint
        if last > self.counters.begun:
            self.forget_stored()
            self.counters = Counters(step=step, begun=last)

    def note_steps(self, options: Options) -> None:
        """Note what the options ask for and cannot have, because nobody says how many steps there will be."""
        unknown = self.counters.total_steps is None and options.last_steps and not options.has_static_mask
        self.notes = (LAST_STEPS_UNKNOWN.format(options.last_steps),) if unknown else ()

    def record(self, live: bool) -> ContextRecord:
        """Return what has happened since the last restart."""
        activations = self.key.activations
        return ContextRecord(
            generation=self.generation,
            branch=self.branch,
            segment=self.segment,
            shape=activations[0][0] if activations and activations[0] else (),
            steps=tuple(self.statistics.steps),
            reasons=dict(self.statistics.reasons),
            nbytes=self.nbytes if live else 0,
            threshold=self.threshold,
            blocks=sum(unit.blocks for unit in self.units),
            pruned_blocks=self.statistics.pruned_blocks,
            saved_flops=self.statistics.saved_flops,
            middle_flops=self.flops[0],
            total_flops=self.flops[1],
            signature=self.key.signature,
            live=live,
            notes=self.notes,
            began=self.era,
        )


class ModelState:
    """The contexts of one model (one set of parameter objects) under one set of options, least recently used first."""

    def __init__(self, options: Options, parameters: Identities) -> None:
        self.base = options
        """Those that its graphs were compiled under."""
        self.follow(options)
        self.parameters = parameters
        self.ids = frozenset(key[0] for key in parameters.key)
        self.contexts: OrderedDict[ContextKey, Context] = OrderedDict()
        self.refused: Counter[Reason] = Counter()
        self.ended: deque[ContextRecord] = deque(maxlen=MAX_ENDED_KEPT)
        self.trunk = ""
        self.dropped = False
        self.turns = 0

    def follow(self, options: Options) -> None:
        """Take these options, which must not differ from the graph's where they shape it, from the next call on."""
        self.options = options
        self.policy: Policy = policy_of(options)

    def find(self, key: ContextKey) -> Context | None:
        """Return the context of this key and make it the most recently used one."""
        context = self.contexts.get(key)
        if context is None or not context.conditioning.alive:
            return None
        self.contexts.move_to_end(key)
        return context

    def add(self, context: Context) -> None:
        """Take a new context in; what it makes obsolete or superfluous goes."""
        key = context.key
        self.drop_where(lambda other: _overwritten(other.key, key))
        self.drop(key)
        self.contexts[key] = context
        self.trunk = context.trunk
        for other in list(self.contexts.values())[: max(0, len(self.contexts) - self.options.max_contexts)]:
            if not other.busy and other is not context:
                self.drop(other.key)

    def make_room(self, wanted: Context, nbytes: int) -> bool:
        """Drop idle contexts, least recently used first, until `wanted` may hold `nbytes`; return whether it may."""
        limit = self.options.max_state_bytes
        if limit is None:
            return True
        if nbytes > limit:
            return False
        held = sum(context.nbytes for context in self.contexts.values() if context is not wanted)
        for other in list(self.contexts.values()):
            if held + nbytes <= limit:
                break
            if other is not wanted and not other.busy and other.nbytes:
                held -= other.nbytes
                self.drop(other.key)
        return held + nbytes <= limit

    def restart(self, context: Context) -> None:
        """Begin another generation in a context; the statistics of the last one are kept."""
        self._keep_statistics(context)
        context.restart()

    def drop(self, key: ContextKey) -> None:
        """Drop one context with its tensors; its statistics are kept."""
        context = self.contexts.pop(key, None)
        if context is not None:
            self._keep_statistics(context)
            context.dropped = True
            context.valid = False
            context.tensors = []
            context.specs = ()
            context.kept = None

    def drop_where(self, wanted: Callable[[Context], bool]) -> None:
        """Drop every context for which `wanted` holds."""
        for context in [context for context in self.contexts.values() if wanted(context)]:
            self.drop(context.key)

    def label(self, key: ContextKey) -> str:
        """Return a name for a new context's branch that no other of the same run and graph has."""
        base = key.explicit if key.explicit is not None else key.name
        taken = {context.branch for context in self.contexts.values() if context.key.run == key.run}
        if base is not None and base not in taken:
            return base
        if base is None and self.options.enable_separate_cfg:
            names = ("uncond", "cond") if self.options.cfg_compute_first else ("cond", "uncond")
            free = [name for name in names if name not in taken]
            if free:
                return free[0]
        count = 1
        while (name := f"{base} ({count + 1})" if base is not None else f"branch {count}") in taken:
            count += 1
        return name

    def record(self) -> ModelRecord:
        """Return the statistics of all contexts, ended and live."""
        live = tuple(context.record(live=True) for context in self.contexts.values())
        return ModelRecord((*self.ended, *live), dict(self.refused), self.trunk)

    def _keep_statistics(self, context: Context) -> None:
        if context.statistics.reasons:
            self.ended.append(context.record(live=False))
        context.statistics = Statistics()


def _overwritten(old: ContextKey, new: ContextKey) -> bool:
    """Whether `new` has the same conditioning objects as `old` with later contents, so that `old` cannot come back."""
    if old.conditioning == new.conditioning:
        return False
    return [pair[0] for pair in old.conditioning] == [pair[0] for pair in new.conditioning]
