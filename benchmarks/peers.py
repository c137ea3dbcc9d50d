"""cache-dit 1.5.3 on the digits model, called as its documentation says: eager, the 12 blocks as one list.

It is no dependency of this project: `pip install -c constraints.txt -e ".[bench,peers]"` adds it.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from torch import nn

from benchmarks.digits.sample import DigitsPipeline, load_pipeline
from benchmarks.methods import NOT_COMPILED, Method, Run, Setting, Work, blocks_of
from benchmarks.schedules import Schedule, masks, thresholds

INSTALL = 'cache-dit is left out: pip install -c constraints.txt -e ".[bench,peers]" adds it'
Calibrator = tuple[str, dict[str, Any]]
"""The class of a calibrator's configuration, and its arguments."""
CALIBRATORS: dict[str, Calibrator | None] = {
    "": None,
    "-taylorseer1": ("TaylorSeerCalibratorConfig", {"taylorseer_order": 1}),
    "-taylorseer2": ("TaylorSeerCalibratorConfig", {"taylorseer_order": 2}),
    "-foca": ("FoCaCalibratorConfig", {}),
    "-dmd": ("DMDCalibratorConfig", {}),
}
"""What a method's name ends in, and the class of its calibrator's configuration with arguments; None: no calibrator."""


def peer_methods() -> list[Method]:
    """cache-dit with every calibrator; none where it is not installed."""
    if find_spec("cache_dit") is None:
        return []
    cached = [_method("cache-dit" + ending, calibrator) for ending, calibrator in CALIBRATORS.items()]
    pruned = [_pruning("cache-dit-dbprune" + ending, CALIBRATORS[ending]) for ending in ("", "-taylorseer1")]
    return [*cached, *pruned]


def _pruning(name: str, calibrator: Calibrator | None) -> Method:
    return Method(
        name,
        lambda setting: thresholds(setting.steps, "residual"),
        lambda setting, schedule: PeerRun(setting, schedule, calibrator, prunes=True),
        NOT_COMPILED,
    )


def _method(name: str, calibrator: Calibrator | None) -> Method:
    def schedules(setting: Setting) -> list[Schedule]:
        blocks = blocks_of(load_pipeline(setting.weights))
        return [*masks(setting.steps, blocks, 1), *thresholds(setting.steps, "residual")]

    return Method(name, schedules, lambda setting, schedule: PeerRun(setting, schedule, calibrator), NOT_COMPILED)


class PeerRun(Run):
    """A pipeline under cache-dit; hooks on the blocks count what really runs."""

    def __init__(
        self,
        setting: Setting,
        schedule: Schedule,
        calibrator: Calibrator | None = None,
        prunes: bool = False,
    ) -> None:
        super().__init__(load_pipeline(setting.weights), NOT_COMPILED)
        # it logs a dozen lines for every configuration
        os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
        import cache_dit

        self._cache_dit, self._steps = cache_dit, setting.steps
        self._counts = count_blocks(self.pipeline)
        config = None if calibrator is None else getattr(cache_dit, calibrator[0])(**calibrator[1])
        self._adapter = cache_dit.enable_cache(
            one_list(self.pipeline.transformer), cache_config=config_of(schedule, prunes), calibrator_config=config
        )

    def begin(self) -> None:
        # without it the second generation would begin with the state of the first: it counts one call too many
        self._cache_dit.refresh_context(self.pipeline.transformer, num_inference_steps=self._steps)
        self._counts.clear()

    def work(self, steps: int) -> Work:
        least = min(self._counts)
        letters = ["C" if count == self.blocks else "." if count == least else "m" for count in self._counts]
        return Work(("".join(letters[::2]), "".join(letters[1::2])), sum(self._counts))

    def close(self) -> None:
        self._cache_dit.disable_cache(self._adapter)


def count_blocks(pipeline: DigitsPipeline) -> list[int]:
    """A list that gets, for every call of the transformer from now on, how many blocks ran in it."""
    counts: list[int] = []

    def note(*_: object) -> None:
        counts[-1] += 1

    pipeline.transformer.register_forward_pre_hook(lambda *_: counts.append(0))
    for block in (*pipeline.transformer.transformer_blocks, *pipeline.transformer.single_transformer_blocks):
        block.register_forward_hook(note)
    return counts


def one_list(transformer: nn.Module, separate_cfg: bool = True) -> Any:
    """Its adapter of Flux without a pipeline: double and single blocks make one list, with one decision per step."""
    from cache_dit import BlockAdapter, ForwardPattern

    return BlockAdapter(
        transformer=transformer,
        blocks=nn.ModuleList([*transformer.transformer_blocks, *transformer.single_transformer_blocks]),
        blocks_name="transformer_blocks",
        dummy_blocks_names=["single_transformer_blocks"],
        forward_pattern=ForwardPattern.Pattern_1,
        has_separate_cfg=separate_cfg,
    )


def config_of(schedule: Schedule, prunes: bool = False, separate_cfg: bool = True) -> Any:
    """Its configuration of a schedule: a static mask, or a threshold and a warmup."""
    from cache_dit import DBCacheConfig, DBPruneConfig

    common = {
        "Fn_compute_blocks": schedule.first_blocks,
        "Bn_compute_blocks": schedule.last_blocks,
        "num_inference_steps": schedule.steps,
        "enable_separate_cfg": separate_cfg,
    }
    if schedule.mask is not None:
        mask = [int(bit) for bit in schedule.mask]
        return DBCacheConfig(
            **common, steps_computation_mask=mask, steps_computation_policy="static", max_warmup_steps=2
        )
    kind = DBPruneConfig if prunes else DBCacheConfig
    return kind(**common, residual_diff_threshold=schedule.threshold, max_warmup_steps=schedule.warmup_steps)
