"""What the runtime and the compiled call tell each other: modes, reasons, roles of inputs, lease and outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from fxcache.options import Options


class Mode(Enum):
    """What the host asks of the graph for one call."""

    COMPUTE = "compute"
    """Run the whole trunk; no decision, no host synchronisation."""
    DECIDE = "decide"
    """Reuse if the difference is finite and below `Lease.threshold`, otherwise compute."""
    REUSE = "reuse"
    """Reuse whatever the difference is; it is not looked at."""


class Reason(str, Enum):
    """Why a call ended the way it did; the value is what `summary` prints."""

    REUSED = "reused"
    PARTLY = "partly reused"
    DIFFERENCE = "difference >= threshold"
    WARMUP = "warmup"
    MASK = "step mask"
    LAST = "last_steps"
    INTERVAL = "cache_interval"
    ERROR = "accumulated error > threshold"
    STEPS_UNKNOWN = "number of steps unknown"
    MAX_CACHED = "max_cached_steps"
    MAX_CONTINUOUS = "max_continuous_cached_steps"
    MAX_ACCUMULATED = "accumulated difference"
    DISABLED = "threshold <= 0"
    FIRST = "first step"
    FOLLOWS = "follows the other branch"
    NOT_FINITE = "not finite"
    RESIZED = "a size that depends on data has changed"
    RESTART = "time restarted"
    WEIGHTS = "weights changed"
    UNATTRIBUTED = "no context for this call"
    REPEATED = "repeated call"
    OTHER_CONDITIONING = "other conditioning in the same step"
    BUSY = "context in use by another call"
    TOO_LARGE = "max_state_bytes"
    OUTVOTED = "computed by another rank"

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True)
class InputRoles:
    """Positions in the flat inputs of one graph, by what the input means to a denoising loop."""

    parameters: tuple[int, ...] = ()
    """Parameters and buffers; they identify the model."""
    latents: tuple[int, ...] = ()
    """Change at every step, shared by the branches of one step."""
    timestep: tuple[int, ...] = ()
    """The time or noise level; may be empty."""
    conditioning: tuple[int, ...] = ()
    """Text states, pooled vectors, class labels; they identify the branch."""
    other: tuple[int, ...] = ()
    """Masks, position ids, rope tables, guidance, control residuals: only their shapes count."""
    numbers: tuple[int, ...] = ()
    """Numbers of the model that Dynamo hands over as tensors, such as the scale of an adapter."""
    names: tuple[str, ...] = ()
    """Best known argument name of every input, for messages."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape, dtype and device of one state tensor; contiguous."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def nbytes(self) -> int:
        """Bytes of one such tensor."""
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count


class UnitInfo(NamedTuple):
    """One part of the trunk that is decided for itself."""

    blocks: int
    flops: int


@dataclass(frozen=True, eq=False)
class GraphInfo:
    """What the runtime must know of one compiled graph. Compared by identity."""

    signature: str
    """Hash of the trunk's structure: equal for all graphs of one model, but different when blocks are skipped."""
    options: Options
    roles: InputRoles
    middle_flops: int = 0
    """Work a reused call saves, in floating point operations."""
    total_flops: int = 0
    stream_names: tuple[str, ...] = ()
    trunk: str = ""
    """The trunk in words."""
    units: tuple[UnitInfo, ...] = ()
    """The parts of the trunk that are decided for themselves; empty where there is one decision."""
    is_fragment: bool = False
    """Whether the model has other graphs too, so that the inputs of this one need not be the model's."""


class UnitOutcome(NamedTuple):
    """What a call did about one unit."""

    reused: bool
    difference: float | None
    finite: bool


@dataclass(frozen=True)
class Outcome:
    """What a call did, as the graph reported it; the difference is the number that was compared with the threshold.

    A call in `Mode.COMPUTE` reports `Outcome()`, one in `Mode.REUSE` whether it was reused. `time` is the clock
    (direction, previous, now) that the decision has read, if there was one.
    """

    reused: bool = False
    difference: float | None = None
    finite: bool = True
    restarted: bool = False
    time: tuple[float, float, float] | None = None
    units: tuple[UnitOutcome, ...] = ()
    """Per unit, where the trunk has several and the graph was asked; `reused` is then whether any was."""
    sizes: tuple[int, ...] = ()
    """What the graph has met of the sizes in `Lease.sizes`; if they differ, it has neither reused nor stored."""
    outvoted: bool = False
    """Whether it would have been reused, had another rank of the model not computed it."""


@dataclass(frozen=True)
class StepRecord:
    """One finished call of a context, for `summary`."""

    step: int
    reason: Reason
    difference: float | None
    """Relative residual difference; absent when nothing was compared. Of several units the mean."""
    pruned_blocks: int = 0
    """Blocks that were skipped, where they are decided for themselves."""

    @property
    def reused(self) -> bool:
        """Whether the trunk's middle was skipped, or some of it."""
        return self.reason in (Reason.REUSED, Reason.PARTLY)


class Stored(NamedTuple):
    """A computed step whose values are stored."""

    slot: int
    """Where, in every history of the context."""
    step: int
    time: float | None
    """On the axis of the option `calibrator_time`; None where the host does not know it."""


@dataclass(frozen=True)
class UnitTerms:
    """What the host knows of one unit before a call."""

    mode: Mode
    stored: tuple[Stored, ...]
    slot: int
    growth: float = 1.0
    """What a difference taken at the step before is multiplied with to hold for this one."""


class Lease:
    """The right of one call to use one context, from `Attribution.begin` to `end` or `abort`.

    Call `state` first and read the other fields afterwards: a context whose tensors no longer fit turns the call into a
    computed one.
    """

    __slots__ = (
        "__weakref__",
        "_allocate",
        "clock",
        "coefficients",
        "growing",
        "mode",
        "now",
        "offset",
        "reason",
        "repeat_allowed",
        "sizes",
        "slot",
        "store",
        "stored",
        "threshold",
        "ticket",
        "units",
    )

    def __init__(
        self, allocate: Callable[[Lease, tuple[TensorSpec, ...]], list[torch.Tensor]], ticket: object = None
    ) -> None:
        self.mode: Mode = Mode.COMPUTE
        self.reason: Reason = Reason.UNATTRIBUTED
        self.threshold: float = 0.0
        """Reuse below it; infinite for "always", negative for "never, but tell me the difference"."""
        self.offset: float = 0.0
        """With coefficients: what the difference is added to before it is compared."""
        self.coefficients: tuple[float, ...] = ()
        """Of a polynomial that the difference goes through before it is added, highest power first; none: neither."""
        self.store: bool = False
        """False: compute and leave no trace (the state tensors are scratch)."""
        self.clock: torch.Tensor | None = None
        """Device float32 [3] (direction, previous time, now); None when the host has checked the time."""
        self.repeat_allowed: bool = True
        """Whether an equal time in successive calls is a normal step."""
        self.stored: tuple[Stored, ...] = ()
        """The steps that the context holds, newest first."""
        self.now: tuple[int, float | None] = (0, None)
        """Step and time of this call, as in `Stored`."""
        self.slot: int = 0
        """Where this call is stored if it is."""
        self.units: tuple[UnitTerms, ...] = ()
        """Terms per unit, where the trunk has several; `stored` and `slot` then say nothing."""
        self.growing: tuple[float, float] = (0.0, 0.0)
        """How the threshold grows with the differences of a step: factor and end; an end of 0: it does not."""
        self.sizes: tuple[int, ...] = ()
        """Sizes that depend on data, as the state was made for them: those that were last met."""
        self.ticket = ticket
        """Bookkeeping of the attribution; nobody else reads it."""
        self._allocate = allocate

    @property
    def times(self) -> tuple[list[float], float]:
        """Times of the steps in `stored` and of this one, see `times_of`."""
        return self.times_of(self.stored)

    def times_of(self, entries: Sequence[Stored]) -> tuple[list[float], float]:
        """Times of stored steps and of this one: on the axis asked for if all are known and differ, else steps."""
        times, now = [stored.time for stored in entries], self.now[1]
        known = [time for time in times if time is not None]
        if now is not None and len(known) == len(times) == len(set(known)):
            return known, now
        return [float(stored.step) for stored in entries], float(self.now[0])

    def state(self, specs: tuple[TensorSpec, ...]) -> list[torch.Tensor]:
        """Return the context's tensors, made with zeros on first use and again when the specs changed."""
        return self._allocate(self, specs)
