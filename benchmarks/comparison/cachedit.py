"""cache-dit 1.5.3 as a contestant: all blocks as one list, as its adapter of Flux has them.

It compiles as its documentation says: the transformer after the cache is switched on, whole or block by block.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from benchmarks.comparison.entries import Entry, Stage
from benchmarks.comparison.models import blocks_of
from benchmarks.schedules import Schedule

Calibrator = tuple[str, dict[str, Any]]
"""The class of a calibrator's configuration, and its arguments."""


class CacheDit(Entry):
    """DBCache with one calibrator, or none."""

    def __init__(self, stage: Stage, way: str, calibrator: Calibrator | None = None) -> None:
        super().__init__(stage, way)
        # it logs a dozen lines for every configuration
        os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
        import cache_dit

        self._cache_dit, self._adapter = cache_dit, None
        self._calibrator = calibrator

    def begin(self, schedule: Schedule) -> None:
        super().begin(schedule)
        if self._adapter is not None:
            # without it a generation would begin with the state of the one before: it counts one call too many
            self._cache_dit.refresh_context(self.transformer, cache_config=self._config(schedule))
            return
        calibrator = self._calibrator and getattr(self._cache_dit, self._calibrator[0])(**self._calibrator[1])
        self._adapter = self._cache_dit.enable_cache(
            self._one_list(), cache_config=self._config(schedule), calibrator_config=calibrator
        )
        self.compile()

    def decisions(self) -> tuple[str, ...]:
        context, steps = self._context(), range(self.schedule.steps)
        cached = [context.get_cached_steps(), context.get_cfg_cached_steps()][: self.stage.model.branches]
        return tuple("".join("." if step in branch else "C" for step in steps) for branch in cached)

    def state(self) -> Iterable[Any]:
        return (self._context(),)

    def close(self) -> None:
        if self._adapter is not None:
            self._cache_dit.disable_cache(self._adapter)

    def _context(self) -> Any:
        return self.transformer._context_manager.get_context(self.transformer._context_names[0])

    def _one_list(self) -> Any:
        from torch.nn import ModuleList

        return self._cache_dit.BlockAdapter(
            transformer=self.transformer,
            blocks=ModuleList(blocks_of(self.transformer)),
            blocks_name="transformer_blocks",
            dummy_blocks_names=["single_transformer_blocks"],
            forward_pattern=self._cache_dit.ForwardPattern.Pattern_1,
            has_separate_cfg=self.stage.model.branches == 2,
        )

    def _config(self, schedule: Schedule) -> Any:
        common = {
            "Fn_compute_blocks": schedule.first_blocks,
            "Bn_compute_blocks": schedule.last_blocks,
            "num_inference_steps": schedule.steps,
            "enable_separate_cfg": self.stage.model.branches == 2,
        }
        if schedule.mask is not None:
            mask = [int(bit) for bit in schedule.mask]
            fixed = {"steps_computation_mask": mask, "steps_computation_policy": "static", "max_warmup_steps": 2}
            return self._cache_dit.DBCacheConfig(**common, **fixed)
        compared = {"residual_diff_threshold": schedule.threshold, "max_warmup_steps": schedule.warmup_steps}
        return self._cache_dit.DBCacheConfig(**common, **compared)
