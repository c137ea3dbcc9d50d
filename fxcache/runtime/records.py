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
    middle_flops: int
    total_flops: int
    signature: str
    live: bool
    began: int = 0
    """Grows from context to context and from restart to restart, over all models."""


@dataclass
class Statistics:
    """The growing part of a `ContextRecord`."""

    steps: deque[StepRecord] = field(default_factory=lambda: deque(maxlen=MAX_STEPS_KEPT))
    reasons: Counter[Reason] = field(default_factory=Counter)

    def add(self, record: StepRecord) -> None:
        """Count one step."""
        self.steps.append(record)
        self.reasons[record.reason] += 1


@dataclass(frozen=True)
class ModelRecord:
    """All that is known of the calls of one model under one set of options."""

    contexts: tuple[ContextRecord, ...]
    """Ended ones first, each in the order they began."""
    refused: dict[Reason, int]
    """Calls that belong to no context."""
    trunk: str
