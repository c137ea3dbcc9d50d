"""cache-dit 1.5.3, called as its documentation says: the blocks of a Flux transformer as one list.

It is no dependency of this project: `pip install -c constraints.txt -e ".[bench,peers]"` adds it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.digits.sample import DigitsPipeline
from benchmarks.schedules import Schedule

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
