"""Calibrators through ``torch.compile``: every output and every decision is that of the eager oracle."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch

from tests.calibrators import explicit
from tests.integration.scenes import fxcache_of, play
from tests.integration.walks import (
    BLOCKS,
    CALIBRATORS,
    DECIDED,
    STREAMS,
    check,
    interleaved,
    mixed,
    options_of,
    steps_of,
)
from tests.models.tiny_trunk import tiny_trunk
from tests.models.transformers import TRANSFORMERS


def cases() -> list[Any]:
    """All combinations; slow are those that are not needed to have every pair of settings once."""
    rest = [case for case in product(CALIBRATORS, DECIDED, STREAMS, BLOCKS) if case[:2] != ("regression", "residual")]
    seen: set[Any] = set()
    made = []

    def new(case: tuple[str, ...]) -> set[Any]:
        return set(combinations(enumerate(case), 2)) - seen

    while rest:
        best = max(rest, key=lambda case: len(new(case)))
        rest.remove(best)
        made.append(pytest.param(*best, marks=() if new(best) else pytest.mark.slow))
        seen |= new(best)
    return made


@pytest.mark.parametrize(("calibrator", "decided", "streams", "blocks"), cases())
def test_outputs_and_decisions_are_those_of_the_oracle(calibrator, decided, streams, blocks):
    two, more = STREAMS[streams]
    model = tiny_trunk(two, blocks=4 if blocks == "F2B1" else 3)
    calls = interleaved(steps_of("first", 1), steps_of("second", 2))
    options = mixed(model, options_of(calibrator, decided, blocks, **more), calls)
    _, words = check(model, options, calls)
    for word in words.values():
        assert "." in word and "C" in word.lstrip("C")


def test_the_indicator_is_forecast_by_the_dynamics_of_its_own_stream():
    """In Flux with a last block the text leaves the middle in front of the picture."""
    model = TRANSFORMERS["flux"](3, single_layers=3)
    calls = [model.inputs(step, drift=0.2) for step in range(6)]
    seen: dict[str, torch.Tensor] = {}
    first, last = model.module.transformer_blocks[0], model.module.single_transformer_blocks[-1]

    def entering(_: Any, args: Any, given: Any, made: Any) -> None:
        seen.update(start=given["hidden_states"], entered=made[1])

    def leaving(_: Any, args: Any, given: Any) -> None:
        seen.update(left=given["hidden_states"])

    hooks = [
        first.register_forward_hook(entering, with_kwargs=True),
        last.register_forward_pre_hook(leaving, with_kwargs=True),
    ]
    indicators, residuals = [], []
    for call in calls:
        model.run(call)
        indicators.append((seen["entered"] - seen["start"]).double().flatten().numpy())
        residuals.append((seen["left"] - seen["entered"]).double().flatten().numpy())
    for hook in hooks:
        hook.remove()
    chosen = {"calibrator": "dmd", "indicator": "forecast", "max_warmup_steps": 5, "Bn_compute_blocks": 1}
    run = play(model, fxcache_of(model.module, inner_backend="eager", **chosen), calls)
    times = [4.0, 3.0, 2.0, 1.0, 0.0]
    weights = explicit.dmd(times, 5.0, np.stack(residuals[:5][::-1]), limit=3.0)
    forecast = weights @ np.stack(indicators[:5][::-1])
    error = np.linalg.norm(forecast - indicators[5]) / np.linalg.norm(indicators[5])
    assert run.differences[-1] == pytest.approx(float(error), rel=1e-3)
