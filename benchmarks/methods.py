"""The ways to draw the same digits with less work: each opens a pipeline and says how many blocks a generation ran."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fxcache
from benchmarks.digits.model import WEIGHTS
from benchmarks.digits.sample import DigitsPipeline, load_pipeline
from benchmarks.schedules import Schedule, fewer_steps, masks, thresholds

FEWER_STEPS = "fewer-steps"
NOT_COMPILED = "none"
Configure = Callable[[], Any]
"""Makes the configuration of a calibrator; None for reuse as it is."""
RESIDUAL = ("residual",)
BOTH = ("residual", "forecast")
UNLIMITED: dict[str, Any] = {"calibrator_max_gain": None}
CALIBRATORS: dict[str, tuple[Configure, tuple[str, ...]]] = {
    "": (lambda: None, RESIDUAL),
    "-taylorseer1": (lambda: fxcache.TaylorSeerCalibratorConfig(taylorseer_order=1), BOTH),
    "-taylorseer2": (lambda: fxcache.TaylorSeerCalibratorConfig(taylorseer_order=2), BOTH),
    "-taylorseer3": (lambda: fxcache.TaylorSeerCalibratorConfig(taylorseer_order=3), BOTH),
    "-taylorseer1-unlimited": (lambda: fxcache.TaylorSeerCalibratorConfig(taylorseer_order=1, **UNLIMITED), RESIDUAL),
    "-taylorseer2-unlimited": (lambda: fxcache.TaylorSeerCalibratorConfig(taylorseer_order=2, **UNLIMITED), RESIDUAL),
    "-foca-unlimited": (lambda: fxcache.FoCaCalibratorConfig(**UNLIMITED), RESIDUAL),
    "-foca": (lambda: fxcache.FoCaCalibratorConfig(), BOTH),
    "-dmd": (lambda: fxcache.DMDCalibratorConfig(), BOTH),
    "-regression": (lambda: fxcache.RegressionCalibratorConfig(), ("forecast",)),
}
"""What a method's name ends in, its calibrator, and the indicators that its thresholds are compared with."""
PRUNING: dict[str, tuple[Configure, dict[str, Any]]] = {
    "": (lambda: None, {}),
    "-groups": (lambda: None, {"prune_group": 4}),
    "-previous": (lambda: None, {"prune_indicator": "previous"}),
    "-taylorseer1": (lambda: fxcache.TaylorSeerCalibratorConfig(taylorseer_order=1), {}),
    "-taylorseer1-unlimited": (lambda: fxcache.TaylorSeerCalibratorConfig(taylorseer_order=1, **UNLIMITED), {}),
}
"""What the name of a method that prunes blocks ends in, its calibrator and its knobs."""


@dataclass(frozen=True)
class Setting:
    """What all contestants have in common."""

    steps: int
    weights: Path = WEIGHTS
    inner: str = "inductor"
    """The compiler of the uncached model and of fxcache."""


@dataclass(frozen=True)
class Work:
    """What one generation did."""

    decisions: tuple[str, ...]
    """Per branch, a letter per step: `C` computed, `.` reused, `m` some blocks of it."""
    block_runs: int
    """Executions of a block, over all steps and branches."""

    def count(self, letter: str) -> int:
        """Steps of all branches with this decision."""
        return sum(branch.count(letter) for branch in self.decisions)


class Run:
    """A pipeline that is ready to draw, and what its last generation did; this one is uncached."""

    def __init__(self, pipeline: DigitsPipeline, compiler: str) -> None:
        self.pipeline, self.compiler = pipeline, compiler
        self.blocks = blocks_of(pipeline)

    def begin(self) -> None:
        """Prepare the next generation."""

    def work(self, steps: int) -> Work:
        """What the last generation of so many steps did."""
        return Work(("C" * steps,) * 2, 2 * steps * self.blocks)

    def close(self) -> None:
        """Let go of what the run holds outside of its pipeline."""


@dataclass(frozen=True)
class Method:
    """One contestant with all its schedules."""

    name: str
    schedules: Callable[[Setting], list[Schedule]]
    open: Callable[[Setting, Schedule], Run] | None
    """None: runs on the uncached pipeline."""
    uncached: str = ""
    """Compiler of the uncached model that is measured beside it; empty: the one of the setting."""


def blocks_of(pipeline: DigitsPipeline) -> int:
    """Blocks of the transformer."""
    return len(pipeline.transformer.transformer_blocks) + len(pipeline.transformer.single_transformer_blocks)


def open_uncached(setting: Setting, compiler: str) -> Run:
    """The pipeline without a cache, for one compiler."""
    pipeline = load_pipeline(setting.weights)
    if compiler != NOT_COMPILED:
        pipeline.transformer.compile(backend=compiler)
    return Run(pipeline, compiler)


def own_methods() -> list[Method]:
    """The baseline of fewer steps, and fxcache with every calibrator."""
    cached = [_cached("fxcache" + ending, *calibrator) for ending, calibrator in CALIBRATORS.items()]
    pruned = [_pruned("fxcache-dbprune" + ending, *each) for ending, each in PRUNING.items()]
    return [Method(FEWER_STEPS, lambda setting: fewer_steps(setting.steps), None), *cached, *pruned]


def _pruned(name: str, calibrator: Configure, knobs: dict[str, Any]) -> Method:
    return Method(
        name,
        lambda setting: thresholds(setting.steps, "residual"),
        lambda setting, schedule: PrunedRun(setting, schedule, calibrator(), knobs),
    )


def _cached(name: str, calibrator: Configure, indicators: tuple[str, ...]) -> Method:
    def schedules(setting: Setting) -> list[Schedule]:
        blocks = blocks_of(load_pipeline(setting.weights))
        found = [schedule for first in (1, 0) for schedule in masks(setting.steps, blocks, first)]
        return found + [schedule for indicator in indicators for schedule in thresholds(setting.steps, indicator)]

    return Method(name, schedules, lambda setting, schedule: CachedRun(setting, schedule, calibrator()))


def cache_config(schedule: Schedule) -> fxcache.DBCacheConfig:
    """The configuration of fxcache for a schedule."""
    common = {"Fn_compute_blocks": schedule.first_blocks, "Bn_compute_blocks": schedule.last_blocks}
    if schedule.mask is not None:
        mask = {"steps_computation_mask": schedule.mask, "steps_computation_policy": "static", "max_warmup_steps": 2}
        return fxcache.DBCacheConfig(**common, **mask)
    return fxcache.DBCacheConfig(
        **common,
        residual_diff_threshold=schedule.threshold,
        max_warmup_steps=schedule.warmup_steps,
        indicator=schedule.indicator,
    )


class CachedRun(Run):
    """A pipeline under fxcache."""

    def __init__(self, setting: Setting, schedule: Schedule, calibrator: Any = None, config: Any = None) -> None:
        super().__init__(load_pipeline(setting.weights), setting.inner)
        self._first_blocks = schedule.first_blocks
        config = config or cache_config(schedule)
        fxcache.enable_cache(self.pipeline, config, calibrator, inner_backend=setting.inner, on_refusal="raise")

    def work(self, steps: int) -> Work:
        # both branches of the last generation; where a branch has fewer steps, a call was not attributed
        decisions = tuple(context.decisions for context in fxcache.summary(self.pipeline).contexts[-2:])
        if [len(branch) for branch in decisions] != [steps] * 2:
            raise RuntimeError(f"expected two branches of {steps} steps, found {decisions}")
        computed, reused = (sum(branch.count(letter) for branch in decisions) for letter in "C.")
        return Work(decisions, computed * self.blocks + reused * self._first_blocks)

    def close(self) -> None:
        fxcache.disable_cache(self.pipeline)


class PrunedRun(CachedRun):
    """A pipeline under fxcache that decides about every block."""

    def __init__(self, setting: Setting, schedule: Schedule, calibrator: Any, knobs: dict[str, Any]) -> None:
        config = fxcache.DBPruneConfig(
            Fn_compute_blocks=schedule.first_blocks,
            residual_diff_threshold=schedule.threshold,
            max_warmup_steps=schedule.warmup_steps,
            **knobs,
        )
        super().__init__(setting, schedule, calibrator, config)

    def work(self, steps: int) -> Work:
        contexts = fxcache.summary(self.pipeline).contexts[-2:]
        decisions = tuple(context.decisions for context in contexts)
        if [len(branch) for branch in decisions] != [steps] * 2:
            raise RuntimeError(f"expected two branches of {steps} steps, found {decisions}")
        free = self.blocks - self._first_blocks
        pruned = sum(round((context.pruned_ratio or 0.0) * steps * free) for context in contexts)
        return Work(decisions, 2 * steps * self.blocks - pruned)
