"""cache-dit 1.5.3 as a contestant: all blocks as one list, as its adapter of Flux has them.

It compiles as its documentation says: the transformer after the cache is switched on, whole or block by block.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from benchmarks.comparison.entries import Entry, Stage
from benchmarks.peers import Calibrator, config_of, one_list
from benchmarks.schedules import Schedule


class CacheDit(Entry):
    """DBCache, or DBPrune, with one calibrator or none."""

    def __init__(self, stage: Stage, way: str, calibrator: Calibrator | None = None, prunes: bool = False) -> None:
        super().__init__(stage, way)
        # it logs a dozen lines for every configuration
        os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
        import cache_dit

        self._cache_dit, self._adapter = cache_dit, None
        self._calibrator, self._prunes = calibrator, prunes
        self._separate_cfg = stage.model.branches == 2

    def begin(self, schedule: Schedule) -> None:
        super().begin(schedule)
        if self._adapter is not None:
            # without it a generation would begin with the state of the one before: it counts one call too many
            self._cache_dit.refresh_context(self.transformer, cache_config=self._config(schedule))
            return
        calibrator = self._calibrator and getattr(self._cache_dit, self._calibrator[0])(**self._calibrator[1])
        self._adapter = self._cache_dit.enable_cache(
            one_list(self.transformer, self._separate_cfg),
            cache_config=self._config(schedule),
            calibrator_config=calibrator,
        )
        self.compile()

    def decisions(self) -> tuple[str, ...]:
        context, steps = self._context(), range(self.schedule.steps)
        if self._prunes:
            return self._pruned_decisions()
        cached = [context.get_cached_steps(), context.get_cfg_cached_steps()][: self.stage.model.branches]
        return tuple("".join("." if step in branch else "C" for step in steps) for branch in cached)

    def skipped_blocks(self) -> float | None:
        context = self._context()
        return sum(context.get_pruned_blocks() + context.get_cfg_pruned_blocks()) if self._prunes else None

    def _pruned_decisions(self) -> tuple[str, ...]:
        context = self._context()
        pruned = [context.get_pruned_blocks(), context.get_cfg_pruned_blocks()][: self.stage.model.branches]
        if any(len(branch) != self.schedule.steps for branch in pruned):
            raise RuntimeError(f"expected the pruned blocks of {self.schedule.steps} steps, found {pruned}")
        return tuple("".join("m" if count else "C" for count in branch) for branch in pruned)

    def state(self) -> Iterable[Any]:
        return (self._context(),)

    def close(self) -> None:
        if self._adapter is not None:
            self._cache_dit.disable_cache(self._adapter)

    def _context(self) -> Any:
        return self.transformer._context_manager.get_context(self.transformer._context_names[0])

    def _config(self, schedule: Schedule) -> Any:
        return config_of(schedule, self._prunes, self._separate_cfg)
