"""Denoising runs on tiny trunks with a calibrator: played through ``torch.compile``, checked against the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import fxcache.backend  # noqa: F401  (the name of the backend)
from fxcache.api import context, generation, summary
from fxcache.options import Options
from fxcache.runtime.attribution import attribution
from tests.integration.calibrated import EagerCalibrated
from tests.models.tiny_trunk import TinyTrunk

STEPS, DIM = 12, 16
PACE = (1, 1, 1, 1, 1, 0.3, 3, 0.5, 1, 4, 0.2, 1)
"""How far every step goes: most decisions differ, and so the distances of the computed steps."""

CALIBRATORS: dict[str, dict[str, Any]] = {
    "taylorseer": {"taylorseer_order": 2},
    "foca": {},
    "dmd": {"dmd_history": 5},
    "regression": {"regression_history": 4},
}
DECIDED: dict[str, dict[str, Any]] = {
    "residual": {"indicator": "residual", "max_warmup_steps": 3},
    "forecast": {"indicator": "forecast", "max_warmup_steps": 3},
    "static": {"steps_computation_mask": "111110101001", "steps_computation_policy": "static"},
    "dynamic": {
        "steps_computation_mask": "111110000100",
        "max_warmup_steps": 0,
        "max_continuous_cached_steps": 2,
    },
}
STREAMS: dict[str, tuple[bool, dict[str, Any]]] = {
    "one stream": (False, {}),
    "two streams": (True, {}),
    "encoder off": (True, {"enable_encoder_calibrator": False}),
    "hidden states": (True, {"calibrator_cache_type": "hidden_states", "calibrator_time": "timestep"}),
}
BLOCKS = {
    "F1B0": {"Fn_compute_blocks": 1},
    "F2B1": {"Fn_compute_blocks": 2, "Bn_compute_blocks": 1},
    "F0B0": {"Fn_compute_blocks": 0},
}


Played = tuple[list[Tensor], dict[Any, str]]
"""Outputs of the calls, and the decisions of every branch."""


@dataclass(frozen=True)
class Step:
    """One call of one branch of one generation."""

    generation: str
    branch: str
    number: int
    x: Tensor
    t: Tensor
    c: Tensor


def steps_of(name: str, seed: int, length: int = 4, count: int = STEPS) -> list[Step]:
    """The calls of one generation: both branches at every step, on a smooth way that is walked unevenly."""
    random = torch.Generator().manual_seed(seed)
    start, one, other = (torch.randn(1, length, DIM, generator=random) for _ in range(3))
    texts = {branch: torch.randn(1, 3, DIM, generator=random) for branch in ("cond", "uncond")}
    calls, way = [], 0.0
    for number in range(count):
        x, t = start + way * one + math.sin(2 * way) * other, torch.tensor([1.0 - way])
        calls += [Step(name, branch, number, x, t, text) for branch, text in texts.items()]
        way += 0.04 * PACE[number % len(PACE)]
    return calls


def interleaved(*runs: list[Step]) -> list[Step]:
    return [step for together in zip(*runs, strict=True) for step in together]


def compiled_of(model: TinyTrunk, options: Options, **arguments: Any) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(model, backend="fxcache", fullgraph=True, options=options.to_dict(), **arguments)


def play(model: TinyTrunk, compiled: Callable[..., Tensor], calls: list[Step]) -> Played:
    attribution.forget()
    runs = {name: generation(name) for name in dict.fromkeys(call.generation for call in calls)}
    outputs = []
    with torch.no_grad():
        for call in calls:
            with runs[call.generation], context(call.branch, step_index=call.number):
                outputs.append(compiled(call.x, call.t, call.c).clone())
    words = {(made.generation, made.branch): made.decisions for made in summary(model).contexts}
    return outputs, words


def options_of(calibrator: str, decided: str = "residual", blocks: str = "F1B0", **more: Any) -> Options:
    chosen = dict(DECIDED[decided])
    if calibrator == "regression":
        chosen.pop("indicator", None)
    common = {"inner_backend": "eager", "on_refusal": "raise", "calibrator": calibrator}
    return Options(**{**common, **CALIBRATORS[calibrator], **chosen, **BLOCKS[blocks], **more})


def mixed(model: TinyTrunk, options: Options, calls: list[Step]) -> Options:
    """With a threshold that reuses some of the steps which the difference decides, and not all."""
    if options.has_static_mask:
        return options
    for share in (0.5, 0.35, 0.65, 0.2, 0.8):
        level = 1.0
        for _ in range(4):  # what is computed changes what is measured
            options = options.replace(residual_diff_threshold=level)
            oracle = EagerCalibrated(model, options)
            for call in calls:
                oracle.call((call.generation, call.branch), call.x, call.t, call.c)
            memories = oracle.memories.values()
            measured = sorted(d for memory in memories for d in memory.differences if d is not None)
            reused = sum(memory.decisions.count(".") for memory in memories)
            if level < 1 and 0.2 * len(measured) < reused < 0.8 * len(measured):
                return options
            level = min(0.99, measured[int(share * len(measured))])
    raise AssertionError(f"no threshold splits {measured}")


def check(model: TinyTrunk, options: Options, calls: list[Step], tolerance: float = 1e-4) -> Played:
    """Compare with the oracle, call by call."""
    outputs, words = play(model, compiled_of(model, options), calls)
    oracle = EagerCalibrated(model, options)
    for call, output in zip(calls, outputs, strict=True):
        key = (call.generation, call.branch)
        expected = oracle.call(key, call.x, call.t, call.c, seen=words[key][call.number])
        torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    assert words == {key: memory.decisions for key, memory in oracle.memories.items()}
    for made in summary(model).contexts:
        expected_differences = oracle.memories[made.generation, made.branch].differences
        numbers = [math.nan if each is None else each for each in expected_differences]
        found = [math.nan if each is None else each for each in made.differences]
        assert found == pytest.approx(numbers, rel=1e-3, abs=1e-5, nan_ok=True)
    return outputs, words
