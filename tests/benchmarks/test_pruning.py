"""Methods that prune blocks, as contestants: what they ran is counted from what every block did."""

from __future__ import annotations

import pytest
import torch

import fxcache
from benchmarks.methods import PRUNING, PrunedRun, Setting, own_methods
from benchmarks.schedules import Schedule

STEPS = 8
SCHEDULE = Schedule("threshold", STEPS, threshold=0.3, warmup_steps=3, indicator="residual")


@pytest.mark.parametrize("ending", ["-previous", "-taylorseer1"])
def test_blocks_that_ran_are_counted(ending: str) -> None:
    torch._dynamo.reset()
    calibrator, knobs = PRUNING[ending]
    run = PrunedRun(Setting(STEPS, inner="eager"), SCHEDULE, calibrator(), knobs)
    assert run.pipeline.transformer._compiled_call_impl is not None
    run.pipeline.set_progress_bar_config(disable=True)
    run.pipeline([3, 7], STEPS, 2.0, torch.Generator().manual_seed(0), output_type="pt")
    work = run.work(STEPS)
    contexts = fxcache.summary(run.pipeline).contexts[-2:]
    run.close()
    assert all(0 < (context.pruned_ratio or 0) < (STEPS - 3) / STEPS for context in contexts)
    pruned = sum((context.pruned_ratio or 0) * STEPS * (run.blocks - 1) for context in contexts)
    assert work.block_runs == pytest.approx(2 * STEPS * run.blocks - pruned)


def test_every_way_to_prune_is_a_method() -> None:
    names = [method.name for method in own_methods()]
    assert {f"fxcache-dbprune{ending}" for ending in PRUNING} <= set(names)
