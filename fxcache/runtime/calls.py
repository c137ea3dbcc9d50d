"""One call as far as it shows by itself, and how it follows the last call of its context."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch

from fxcache.runtime.arguments import arguments
from fxcache.runtime.clock import DeviceClock, Reading, host_number, read_time, telling
from fxcache.runtime.contexts import ActivationSignature, Context, ContextKey, TimeSource
from fxcache.runtime.generation import Branch, Run, current_branch, current_run
from fxcache.runtime.identity import Identities, identity_key
from fxcache.runtime.interface import GraphInfo, InputRoles
from fxcache.runtime.signals import current_cache_context


@dataclass(frozen=True)
class Call:
    """What is known of one call before anything of the past is looked at."""

    run: Run
    explicit: Branch | None
    """Said by the user."""
    named: Branch | None
    """Said by the pipeline; None where the user has said something."""
    latents: Identities
    conditioning: tuple[torch.Tensor, ...]
    """Empty where the user has named the branch."""
    timestep: object
    reading: Reading | None
    """The time, where the host knows it."""
    activations: ActivationSignature
    signature: str
    arguments: tuple[Hashable, ...]
    """What tells branches apart beside the conditioning."""
    host_readable: Callable[[torch.Tensor], bool]

    def time(self, axis: str) -> float | None:
        """Return the time of the call on the axis of a calibrator, where the host knows it; None: the step counts."""
        if axis == "step":
            return None
        said = self.explicit or self.named
        if axis == "sigma":
            return said.sigma if said else None
        named = said.timestep if said else None
        return host_number(self.timestep, self.host_readable) if named is None else named

    @property
    def step_index(self) -> int | None:
        """The step, if somebody has said it."""
        said = self.explicit or self.named
        return said.step_index if said else None

    @property
    def source(self) -> TimeSource:
        """Where the order of calls is read from."""
        if self.step_index is not None:
            return TimeSource.INDEX
        if self.reading is not None:
            return TimeSource.HOST
        return TimeSource.DEVICE if isinstance(self.timestep, torch.Tensor) else TimeSource.NONE

    @property
    def _timesteps(self) -> tuple[torch.Tensor, ...]:
        return (self.timestep,) if isinstance(self.timestep, torch.Tensor) else ()

    @property
    def key(self) -> ContextKey:
        """The key of the context it belongs to."""
        return ContextKey(
            self.run.serial,
            self.explicit.name if self.explicit else None,
            self.named.name if self.named else None,
            identity_key(self.conditioning),
            self.signature,
            self.activations,
            arguments=self.arguments,
        )

    def period(self, default: int | None) -> int | None:
        """Return the steps after which another generation begins, where nobody says where generations end."""
        if self.run.bounded:
            return None
        said = self.explicit or self.named
        return (said.num_inference_steps if said else None) or default

    def total_steps(self, given: int | None) -> int | None:
        """Return the steps of this generation: `given` by the user, else as far as somebody has said it."""
        said = self.explicit or self.named
        return given or (said.num_inference_steps if said else None) or self.run.num_inference_steps

    def attributable(self, default_period: int | None) -> bool:
        """Return whether anything shows where a generation begins."""
        if self.run.over:
            return False
        return self.run.bounded or self.source is not TimeSource.NONE or self.period(default_period) is not None

    def is_announced(self, step: int) -> bool:
        """Return whether somebody has said that the run goes on to this step: no clock has to be asked about it."""
        return self.run.bounded and step < (self.run.num_inference_steps or 0)

    def same_time(self, context: Context) -> bool:
        """Return whether the context's previous call came at the same step index or time, as far as the host knows."""
        if self.step_index is not None:
            return self.step_index == context.step_index
        return self.reading is not None and context.host_clock.reads(self.reading)

    def repeats(self, context: Context) -> bool:
        """Return whether this is the context's previous call once more, not its next step."""
        last = context.latents
        if self.explicit is not None or last is None or not last.key or not last.same(self.latents):
            return False
        if self.step_index is not None and self.step_index != context.step_index:
            return False
        if self.reading is not None:
            return context.host_clock.reads(self.reading)
        # an inference tensor may have been written in place unseen: then only the device's clock can tell
        return last.versioned or not isinstance(self.timestep, torch.Tensor)

    def is_elsewhere(self, context: Context) -> bool:
        """Return whether the context has had its call of this step, and this one is about another part of the picture.

        Tiles of a picture and windows of a video come with one prompt at one time. A scheduler of second order comes
        back to a time as well, but never to the first one: how many parts there are shows in the first step.
        """
        if self.explicit is not None or self.step_index is not None or not self.run.bounded:
            return False
        if not self.at_time_of(context) or self.repeats(context):
            return False
        return context.has_neighbours or not (context.has_moved or self.run.comes_back)

    def at_time_of(self, context: Context) -> bool:
        """Return whether the context's previous call came at this time: the same on the host, or the same tensor."""
        if self.reading is not None:
            return context.host_clock.reads(self.reading)
        last = context.timestep
        return last is not None and bool(last.key) and last.versioned and last.same(Identities(self._timesteps))

    def restarts(self, context: Context, default_period: int | None) -> bool:
        """Return whether the host can see that another generation begins with this call."""
        if context.latents is None:
            return False
        if self.source is not context.source:
            return True
        if self.step_index is not None:
            return context.step_index is not None and self.step_index <= context.step_index
        period = self.period(default_period)
        if period is not None and context.counters.step >= period:
            return True
        return self.reading is not None and context.host_clock.restarts(self.reading, self.run.bounded)

    def advance(self, context: Context) -> torch.Tensor | None:
        """Move the context's clocks to this call; return the device's clock if the graph has to look at it."""
        last, context.latents, context.source = context.latents, self.latents, self.source
        if self.step_index is not None:
            context.step_index = self.step_index
            if self.explicit is not None:
                context.counters.step = self.step_index
        if last is not None:
            again = self.at_time_of(context)
            self.run.comes_back |= again and context.has_moved
            context.has_moved |= not again
        if self.reading is not None:
            context.host_clock.advance(self.reading)
        else:
            context.timestep = Identities(self._timesteps)
        if self.source is not TimeSource.DEVICE or not isinstance(self.timestep, torch.Tensor):
            return None
        if context.device_clock is None:
            context.device_clock = DeviceClock(self.timestep.device)
            context.device_clock.begin(self.timestep)
            return None
        return context.device_clock.advance(self.timestep, self.repeat_allowed(last), context.reported)

    def repeat_allowed(self, last: Identities | None) -> bool:
        """Return whether the same time again is a normal step. `last`: the latents of the previous call."""
        return self.run.bounded and not (last is not None and bool(last.key) and last.same(self.latents))


def describe(info: GraphInfo, args: Sequence[object], host_readable: Callable[[torch.Tensor], bool]) -> Call:
    """Return what shows of a call of this graph with these flat inputs."""
    roles, explicit = info.roles, current_branch()
    timestep = telling([args[position] for position in roles.timestep])
    latents, conditioning = tensors_at(args, roles.latents), tensors_at(args, roles.conditioning)
    rest: tuple[Hashable, ...] = ()
    given = arguments() if info.is_fragment else None
    if given is not None:
        latents, timestep, conditioning, rest = given.latents, given.timestep, given.conditioning, given.rest
    return Call(
        run=current_run(),
        explicit=explicit,
        named=current_cache_context() if explicit is None else None,
        latents=Identities(latents),
        conditioning=conditioning if explicit is None else (),
        timestep=timestep,
        reading=read_time(timestep, host_readable),
        activations=_activations(args, roles),
        signature=info.signature,
        arguments=rest if explicit is None else (),
        host_readable=host_readable,
    )


def tensors_at(args: Sequence[object], positions: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Return the tensors at these positions; other inputs have no identity."""
    return tuple(value for position in positions if isinstance(value := args[position], torch.Tensor))


def parameters_at(args: Sequence[object], positions: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Return what is at these positions, all of it tensors: a large model has a thousand, at every call."""
    if len(positions) < 2:
        return tensors_at(args, positions)
    found: tuple[torch.Tensor, ...] = itemgetter(*positions)(args)
    return found


def _activations(args: Sequence[object], roles: InputRoles) -> ActivationSignature:
    positions = (*roles.latents, *roles.timestep, *roles.conditioning, *roles.other)
    values = (args[position] for position in positions)
    return tuple(
        (tuple(map(int, value.shape)), value.dtype, value.device) if isinstance(value, torch.Tensor) else None
        for value in values
    )
