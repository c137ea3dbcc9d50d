"""Whole pipelines with a calibrator, against one that wraps the blocks of the uncompiled transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fxcache.configs import (
    CalibratorConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    RegressionCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from tests.calibrators import explicit
from tests.integration.eager import EagerF1B0, Memory, branches_of
from tests.integration.test_pipelines import build, cached, contexts

STEPS, MASK = 9, "111101001"
PATTERN = "CCCC.C..C"

Weights = Callable[[list[float], float, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def taylorseer(times: list[float], now: float, *_: np.ndarray) -> np.ndarray:
    return explicit.taylorseer(times, now, 1, limit=3.0)


def foca(times: list[float], now: float, *_: np.ndarray) -> np.ndarray:
    return explicit.foca(times, now, limit=3.0)


def dmd(times: list[float], now: float, values: np.ndarray, *_: np.ndarray) -> np.ndarray:
    return explicit.dmd(times, now, values, limit=3.0)


def regression(times: list[float], now: float, values: np.ndarray, seen: np.ndarray, stored: np.ndarray) -> np.ndarray:
    return explicit.regression(seen, stored, 0.03, explicit.taylorseer(times, now, 2, limit=3.0))


def newest(times: list[float], *_: Any) -> np.ndarray:
    return np.eye(len(times))[0]


CASES: dict[str, tuple[CalibratorConfig, int, Weights]] = {
    "taylorseer": (TaylorSeerCalibratorConfig(), 2, taylorseer),
    "foca": (FoCaCalibratorConfig(), 3, foca),
    "dmd": (DMDCalibratorConfig(dmd_history=4), 4, dmd),
    "regression": (RegressionCalibratorConfig(), 3, regression),
}


class Calibrated(EagerF1B0):
    """With a mask, and residuals that are predicted."""

    def __init__(self, *args: Any, history: int, weights: Weights, **more: Any) -> None:
        self.history, self.weights = history, weights
        super().__init__(*args, threshold=0.0, **more)

    def begin(self) -> None:
        super().begin()
        self.kept: list[list[tuple[float, Tensor, Memory]]] = [[] for _ in range(self.branches)]
        self.residuals: list[list[Tensor]] = [[] for _ in range(self.branches)]

    def decide(self, indicator: Tensor) -> None:
        branch = self.calls % self.branches
        self.calls += 1
        self.memory = memory = self.memories[branch]
        kept, residuals = self.kept[branch], self.residuals[branch]
        picture = self.layout.picture
        if memory.residuals and len(residuals) < len(kept):
            residuals.insert(0, memory.residuals[picture])  # of the step computed last
        step = len(memory.decisions)
        self.reuse = MASK[step] == "0"
        memory.decisions += "." if self.reuse else "C"
        if not self.reuse:
            kept.insert(0, (float(step), indicator, memory))
            return
        window = kept[: self.history]
        values = torch.stack(residuals[: self.history])
        flat = values.double().flatten(1).numpy()
        stored = np.stack([each.double().flatten().numpy() for _, each, _ in window])
        seen = indicator.double().flatten().numpy()
        weights = self.weights([time for time, *_ in window], float(step), flat, seen, stored)
        predicted = torch.from_numpy(weights @ flat).view(values.shape[1:]).to(values.dtype)
        memory.residuals = {**memory.residuals, picture: predicted}


@pytest.mark.parametrize(
    ("name", "calibrator"), [("flux", "taylorseer"), ("sd3", "foca"), ("wan", "dmd"), ("dit", "regression")]
)
def test_a_pipeline_predicts_as_the_wrapped_blocks_do(name, calibrator):
    config, history, weights = CASES[calibrator]
    plain = build(name)
    oracle = Calibrated(plain.transformer, name, history=history, weights=weights, branches=branches_of(plain))
    request = {"steps": STEPS, "cfg": True}
    expected, words = plain.run(**request), oracle.decisions
    mask = {"steps_computation_mask": MASK, "steps_computation_policy": "static"}
    tiny = cached(build(name), **config.to_mapping(), **mask)
    other = tiny.run(**request, prompt_seed=5, latent_seed=1)
    before = len(contexts(tiny))
    out = tiny.run(**request)
    assert [made.decisions for made in contexts(tiny, before)] == words == [PATTERN] * branches_of(plain)
    torch.testing.assert_close(out, expected, atol=5e-4, rtol=5e-4)
    assert torch.equal(tiny.run(**request, prompt_seed=5, latent_seed=1), other)
    oracle.weights = newest
    oracle.begin()
    assert not torch.allclose(plain.run(**request), out, atol=5e-4, rtol=5e-4)
