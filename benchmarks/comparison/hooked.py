"""The caches of diffusers as contestants: hooks that `transformer.enable_cache` puts on blocks or attentions.

Where a schedule is a mask, the knob that decides is set before every step so that exactly the steps of the mask are
computed; the methods still compare or count as they always do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from diffusers import FirstBlockCacheConfig
from diffusers.hooks import TaylorSeerCacheConfig

from benchmarks.comparison.entries import Entry, Stage
from benchmarks.schedules import Schedule

BRANCHES = ("cond", "uncond")
"""Names that pipelines give to the calls of a step, and by which the hooks keep their state."""


class Hooked(Entry):
    """One cache of diffusers; its state is reset before every generation, as the pipelines do after one."""

    hook: str
    """Name of the hook that holds what the method knows."""

    def __init__(self, stage: Stage, way: str) -> None:
        super().__init__(stage, way)
        self._letters: list[list[str]] = []
        self._hooks: list[Any] = []

    def config(self, schedule: Schedule) -> Any:
        """The configuration that diffusers takes."""
        raise NotImplementedError

    def set(self, schedule: Schedule) -> None:
        """Give the hooks the knobs of another schedule."""
        raise NotImplementedError

    def force(self, step: int, computes: bool) -> None:
        """Make the hooks compute, or reuse in, this step."""
        raise NotImplementedError

    def computed(self, branch: str) -> bool:
        """Whether the last call of a branch was computed."""
        raise NotImplementedError

    def begin(self, schedule: Schedule) -> None:
        super().begin(schedule)
        if not self._hooks:
            self.transformer.enable_cache(self.config(schedule))
            registries = (getattr(module, "_diffusers_hook", None) for module in self.transformer.modules())
            found = [registry.get_hook(self.hook) for registry in registries if registry is not None]
            self._hooks = [hook for hook in found if hook is not None]
            self.compile()
        self.transformer._reset_stateful_cache()
        self._letters = [[] for _ in range(self.stage.model.branches)]
        self.set(schedule)
        if schedule.mask is not None:
            self.force(0, True)

    def after_step(self, step: int) -> None:
        for branch, letters in zip(BRANCHES, self._letters, strict=False):
            letters.append("C" if self.computed(branch) else ".")
        mask = self.schedule.mask
        if mask is not None and step + 1 < len(mask):
            self.force(step + 1, mask[step + 1] == "1")

    def decisions(self) -> tuple[str, ...]:
        return tuple(map("".join, self._letters))

    def state(self) -> Iterable[Any]:
        return [hook.state_manager for hook in self._hooks]

    def close(self) -> None:
        if self._hooks:
            self.transformer.disable_cache()


class FirstBlock(Hooked):
    """FirstBlockCache: the residual of the first block against a threshold, no warmup."""

    hook = "fbc_leader_block_hook"

    def config(self, schedule: Schedule) -> Any:
        return FirstBlockCacheConfig(threshold=0.0)

    def set(self, schedule: Schedule) -> None:
        self._hooks[0].threshold = schedule.threshold

    def force(self, step: int, computes: bool) -> None:
        self._hooks[0].threshold = -1.0 if computes else math.inf

    def computed(self, branch: str) -> bool:
        return bool(self._hooks[0].state_manager._state_cache[branch].should_compute)


class TaylorSeer(Hooked):
    """TaylorSeer of order 1: attentions are forecast, or with `lite` the whole stack of blocks."""

    hook = "taylorseer_cache"

    def __init__(self, stage: Stage, way: str, lite: bool) -> None:
        super().__init__(stage, way)
        self._lite = lite

    def config(self, schedule: Schedule) -> Any:
        dtype = self.pipeline.transformer.dtype
        return TaylorSeerCacheConfig(max_order=1, taylor_factors_dtype=dtype, use_lite_mode=self._lite)

    def set(self, schedule: Schedule) -> None:
        for hook in self._hooks:
            hook.cache_interval = 1_000_000 if schedule.mask else int(schedule.threshold or 1)
            hook.disable_cache_before_step = schedule.warmup_steps or 0

    def force(self, step: int, computes: bool) -> None:
        for hook in self._hooks:
            # a step is computed before this one, and every `cache_interval` steps from the one after it on
            hook.disable_cache_before_step = step + 1 if computes else step

    def computed(self, branch: str) -> bool:
        state = self._hooks[0].state_manager._state_cache[branch]
        return bool(state.last_update_step == state.current_step)
