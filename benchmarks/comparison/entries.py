"""Contestants that are ready to draw: the uncached ones, and fxcache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn import ModuleList

import fxcache
from benchmarks.comparison.models import BLOCK_LISTS, Model, blocks_of, twin
from benchmarks.schedules import Schedule

WAYS = ("eager", "compile", "compile-blocks")
"""Not compiled; `transformer.compile`; `transformer.compile_repeated_blocks`, as diffusers calls it."""


@dataclass(frozen=True)
class Stage:
    """What all contestants have in common."""

    model: Model
    device: str
    source: Any
    """The pipeline that owns the weights; nothing is ever switched on for it."""
    inner: str = "inductor"
    """The compiler of whatever is compiled."""


class Entry:
    """A contestant with a pipeline of its own; this one is uncached."""

    def __init__(self, stage: Stage, way: str = "eager") -> None:
        self.stage, self.way = stage, way
        self.pipeline = twin(stage.source)
        self.transformer: nn.Module = self.pipeline.transformer
        self.blocks = len(blocks_of(self.transformer))
        self.schedule = Schedule("steps", stage.model.steps)
        self.watchers: list[Callable[[int], None]] = [self.after_step]
        """Called with the number of every step when its latents are there."""
        step = self.pipeline.scheduler.step

        @functools.wraps(step)
        def watched(*args: Any, **kwargs: Any) -> Any:
            latents = step(*args, **kwargs)
            for watcher in self.watchers:
                watcher(self.pipeline.scheduler.step_index - 1)
            return latents

        self.pipeline.scheduler.step = watched

    def compile(self) -> None:
        """Compile what is to be compiled; called when everything else is set up."""
        if self.way == "compile":
            self.transformer.compile(backend=self.stage.inner, dynamic=False)
        elif self.way == "compile-blocks":
            self.transformer.compile_repeated_blocks(backend=self.stage.inner, dynamic=False)

    def begin(self, schedule: Schedule) -> None:
        """Prepare the next generation."""
        self.schedule = schedule

    def after_step(self, step: int) -> None:
        """Look at what a step did, and prepare the next one."""

    def decisions(self) -> tuple[str, ...]:
        """What the last generation did, per branch a letter per step: `C` computed, `.` reused, `m` a part of it."""
        return ("C" * self.schedule.steps,) * self.stage.model.branches

    def skipped_blocks(self) -> float | None:
        """Executions of a block that the last generation saved, where its decisions do not tell."""
        return None

    def state(self) -> Iterable[Any]:
        """What holds tensors between two steps."""
        return ()

    def state_bytes(self) -> int:
        """Bytes that are held between two steps, now."""
        from benchmarks.comparison.tensors import bytes_of

        return bytes_of(self.state())

    def close(self) -> None:
        """Let go of what is held outside of the pipeline."""


def open_plain(stage: Stage, way: str) -> Entry:
    """The uncached model."""
    entry = Entry(stage, way)
    entry.compile()
    return entry


def open_ideal(stage: Stage, way: str = "compile") -> Entry:
    """The model with its first block only: what a step with one block that always runs could cost at best."""
    entry = Entry(stage, way)
    first, *others = BLOCK_LISTS
    setattr(entry.transformer, first, ModuleList(getattr(entry.transformer, first)[:1]))
    for name in others:
        setattr(entry.transformer, name, ModuleList())
    entry.blocks = 1
    entry.compile()
    return entry


class Fxcache(Entry):
    """fxcache with one calibrator, or none."""

    def __init__(
        self, stage: Stage, calibrator: Any = None, config: Callable[[Stage, Schedule], Any] | None = None
    ) -> None:
        super().__init__(stage, "compile")
        self._config = functools.partial(config or own_config, stage)
        self._calibrator, self._enabled = calibrator, False
        self._earlier: set[str] = set()

    def begin(self, schedule: Schedule) -> None:
        super().begin(schedule)
        if self._enabled:
            # another mask or threshold needs no other graph
            fxcache.refresh_context(self.transformer, **self._config(schedule).to_mapping())
        else:
            options = {"inner_backend": self.stage.inner, "on_refusal": "raise", "dynamic": False}
            fxcache.enable_cache(self.transformer, self._config(schedule), self._calibrator, **options)
            self._enabled = True
        self._earlier = {context.generation for context in fxcache.summary(self.transformer).contexts}

    def decisions(self) -> tuple[str, ...]:
        branches, steps = self.stage.model.branches, self.schedule.steps
        if self.schedule.mask is not None and "0" not in self.schedule.mask:
            # where nothing can be reused, the graph is left as it is, and there is nothing to note
            return super().decisions()
        found = tuple(context.decisions for context in self._contexts())
        # where a branch has fewer steps, a call was not attributed
        if [len(branch) for branch in found] != [steps] * branches:
            raise RuntimeError(f"expected {branches} branches of {steps} steps, found {found}")
        return found

    def skipped_blocks(self) -> float | None:
        contexts = self._contexts()
        if all(context.pruned_ratio is None for context in contexts):
            return None
        free = self.blocks - self.schedule.first_blocks - self.schedule.last_blocks
        return sum((context.pruned_ratio or 0.0) * self.schedule.steps * free for context in contexts)

    def _contexts(self) -> list[Any]:
        """The branches of the last generation."""
        found = fxcache.summary(self.transformer).contexts
        return [context for context in found if context.generation not in self._earlier]

    def state_bytes(self) -> int:
        return fxcache.summary(self.transformer).state_bytes

    def close(self) -> None:
        fxcache.disable_cache(self.transformer)


def own_config(_: Stage, schedule: Schedule) -> Any:
    """DBCache with the thresholds or the mask of a schedule."""
    blocks = {"Fn_compute_blocks": schedule.first_blocks, "Bn_compute_blocks": schedule.last_blocks}
    if schedule.mask is not None:
        mask = {"steps_computation_mask": schedule.mask, "steps_computation_policy": "static"}
        return fxcache.DBCacheConfig(**blocks, **mask, max_warmup_steps=schedule.warmup_steps or 0)
    compared = {"residual_diff_threshold": schedule.threshold, "max_warmup_steps": schedule.warmup_steps}
    return fxcache.DBCacheConfig(**blocks, **compared)


def pruning_config(_: Stage, schedule: Schedule, **knobs: Any) -> Any:
    """DBPrune with a threshold, and what else it is told."""
    return fxcache.DBPruneConfig(
        Fn_compute_blocks=schedule.first_blocks,
        Bn_compute_blocks=schedule.last_blocks,
        residual_diff_threshold=schedule.threshold,
        max_warmup_steps=schedule.warmup_steps,
        **knobs,
    )
