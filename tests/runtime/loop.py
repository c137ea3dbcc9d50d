"""A stand-in for the compiled call: takes leases, plays the graph's part of the decision, writes down what happened."""

from __future__ import annotations

import math
from typing import Any

import torch

from fxcache.options import Options
from fxcache.runtime.attribution import Attribution, GraphInfo, InputRoles, Lease, Mode, Outcome, TensorSpec

DIM = 4
REUSE_ALWAYS = 0.99
ROLES = InputRoles(
    parameters=(0, 1), latents=(2,), timestep=(3,), conditioning=(4,), other=(5,), names=("w", "b", "x", "t", "c", "m")
)


def options(**changes: Any) -> Options:
    """Options that reuse whatever the rules allow, after a single computed step."""
    return Options(**{"residual_diff_threshold": REUSE_ALWAYS, "max_warmup_steps": 1, **changes})


def latents(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, DIM)


def schedule(steps: int, first: float = 1.0) -> list[torch.Tensor]:
    """Times that know nothing of each other, as `t / 1000` gives them."""
    return [torch.tensor([first * (1 - step / steps)]) for step in range(steps)]


class Model:
    """The weights of one model and its graph; calling it is one denoising call."""

    def __init__(
        self, attribution: Attribution, roles: InputRoles = ROLES, signature: str = "trunk", **changes: Any
    ) -> None:
        self.attribution = attribution
        self.parameters = (torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2)))
        self.info = GraphInfo(signature, options(**changes), roles, middle_flops=9, total_flops=10)
        self.mask = torch.ones(1)

    def begin(self, x: torch.Tensor, t: object, c: object) -> Lease:
        return self.attribution.begin(self.info, (*self.parameters, x, t, c, self.mask))

    def __call__(self, x: torch.Tensor, t: object, c: object = None, difference: float = 0.0) -> str:
        return self.finish(self.begin(x, t, c), x, difference)

    def finish(self, lease: Lease, x: torch.Tensor, difference: float = 0.0) -> str:
        """Play the graph. "C": computed and stored, ".": reused, "r": the clock has turned, "x": left no trace."""
        state = lease.state((TensorSpec(tuple(x.shape), x.dtype, x.device),))
        assert len(state) == 1 and state[0].shape == x.shape
        if lease.mode is Mode.COMPUTE:
            self.attribution.end(lease, Outcome())
            return "C" if lease.store else "x"
        if lease.mode is Mode.REUSE:
            self.attribution.end(lease, Outcome(reused=True))
            return "."
        time, restarted = None, False
        if lease.clock is not None:
            direction, before, now = time = tuple(lease.clock.tolist())
            move = now - before
            restarted = math.isnan(move) or move * direction < 0 or (move == 0 and not lease.repeat_allowed)
        reused = not restarted and math.isfinite(difference) and difference < lease.threshold
        self.attribution.end(lease, Outcome(reused, difference, math.isfinite(difference), restarted, time))
        return "r" if restarted else "." if reused else "C"

    def run(self, times: list[Any], *conditions: object, difference: float = 0.0) -> str:
        """Run a loop, one call per condition in every step; return the codes, one word per branch."""
        codes = [""] * max(1, len(conditions))
        for time in times:
            x = latents()
            for branch, condition in enumerate(conditions or (None,)):
                codes[branch] += self(x, time, condition, difference)
        return " ".join(codes)

    def records(self) -> list[Any]:
        (record,) = self.attribution.records(self.parameters)
        return list(record.contexts)

    def live(self) -> int:
        return sum(record.live for record in self.records())

    def refused(self) -> dict[str, int]:
        (record,) = self.attribution.records(self.parameters)
        return {reason.name: count for reason, count in record.refused.items()}
