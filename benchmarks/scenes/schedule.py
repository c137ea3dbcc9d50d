"""How long a training is and how its rate changes: by steps, or by the clock once the speed is known."""

from __future__ import annotations

import math
import time

import torch

WARMUP_STEPS = 300
MEASURED_STEPS = (20, 60)
"""The speed is measured between these two steps: after compilation, with the device waited for at both."""
MARGIN = 0.97
"""The share of the time left that is planned."""


def rate(step: int, steps: int | None, peak: float) -> float:
    """Linear warm-up, then a cosine from `peak` to 0 at `steps`; as long as `steps` is None only the warm-up."""
    warmup = WARMUP_STEPS if steps is None else min(WARMUP_STEPS, max(1, steps // 10))
    cosine = 1.0 if steps is None else 0.5 * (1 + math.cos(math.pi * min(step / max(steps, 1), 1.0)))
    return peak * min(1.0, (step + 1) / warmup) * cosine


class Clock:
    """The deadline of a training and its measured speed; without `minutes` there is neither."""

    def __init__(self, minutes: float | None, start: float) -> None:
        self._deadline = math.inf if minutes is None else start + 60 * minutes
        self._done = 0
        self._measured_from = 0.0
        self._seconds_a_step = 0.0

    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._deadline

    def stepped(self, device: torch.device) -> bool:
        """Count a step of this process; True once, when the speed has been measured."""
        self._done += 1
        if self._deadline == math.inf or self._done not in MEASURED_STEPS:
            return False
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.monotonic()
        first, last = MEASURED_STEPS
        if self._done == first:
            self._measured_from = now
            return False
        self._seconds_a_step = (now - self._measured_from) / (last - first)
        return True

    def steps_left(self) -> int:
        """How many steps of the measured speed fit before the deadline, less a margin."""
        return max(0, int(MARGIN * (self._deadline - time.monotonic()) / self._seconds_a_step))
