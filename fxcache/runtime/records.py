"""What is remembered of finished calls for `summary`; never used to decide anything."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from fxcache.runtime.interface import Reason, StepRecord

MAX_STEPS_KEPT = 4096
"""Steps listed one by one per context; the counts go on."""
MAX_ENDED_KEPT = 64
"""Ended contexts kept per model."""


@dataclass(frozen=True)
class ContextRecord:
    """One context in one generation, as it was or still is."""

    generation: str
    branch: str
    segment: int
    """How often the time had started again in this context."""
    shape: tuple[int, ...]
    """Of the latents."""
    steps: tuple[StepRecord, ...]
    reasons: dict[Reason, int]
    """Calls per reason; refused ones (repeated, busy) are no steps."""
    nbytes: int
    """State tensors held now; 0 for an ended context."""
    threshold: float
    blocks: int
    """Blocks per step that are decided for themselves; 0 where there is one decision."""
    pruned_blocks: int
    """Of those, skipped in all steps together."""
    saved_flops: int
    middle_flops: int
    total_flops: int
    signature: str
    live: bool
    notes: tuple[str, ...] = ()
    """What the options ask for and this context cannot have."""
    began: int = 0
    """Grows from context to context and from restart to restart, over all models."""


@dataclass
class Statistics:
    """The growing part of a `ContextRecord`."""

    steps: deque[StepRecord] = field(default_factory=lambda: deque(maxlen=MAX_STEPS_KEPT))
    reasons: Counter[Reason] = field(default_factory=Counter)

    pruned_blocks: int = 0
    saved_flops: int = 0

    def add(self, record: StepRecord, saved_flops: int) -> None:
        """Count one step."""
        self.steps.append(record)
        self.pruned_blocks += record.pruned_blocks
        self.saved_flops += saved_flops
        self.reasons[record.reason] += 1


@dataclass(frozen=True)
class ModelRecord:
    """All that is known of the calls of one model under one set of options."""

    contexts: tuple[ContextRecord, ...]
    """Ended ones first, each in the order they began."""
    refused: dict[Reason, int]
    """Calls that belong to no context."""
    trunk: str
