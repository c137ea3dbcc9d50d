"""The schedules of the calibrators' benchmark: masks of every length, and how much work they save."""

import pytest

from benchmarks.schedules import (
    FACTORS,
    block_factor,
    computed_steps_for,
    fewer_steps,
    masks,
    spread_mask,
    thresholds,
)


def test_a_mask_in_full() -> None:
    assert spread_mask(12, 5) == "110010001001"
    assert spread_mask(12, 5, compute_last=False) == "110010010100"


def test_factors_are_those_of_counted_blocks() -> None:
    # 50 steps of 12 blocks, 8 of them whole and 42 with one block only
    assert block_factor(50, 8, 12, 1) == 600 / (8 * 12 + 42)
    assert block_factor(50, 50, 12, 1) == 1
    assert block_factor(50, 10, 12, 0) == 5


@pytest.mark.parametrize("first", [0, 1])
def test_masks_come_near_the_factors_aimed_at(first: int) -> None:
    for factor in FACTORS:
        computed = computed_steps_for(factor, 50, 12, first)
        assert block_factor(50, computed, 12, first) == pytest.approx(factor, rel=0.08)


def test_every_schedule_has_a_name_of_its_own() -> None:
    schedules = [*fewer_steps(50), *masks(50, 12, 1), *masks(50, 12, 0), *thresholds(50, "residual")]
    schedules += thresholds(50, "forecast")
    assert len({schedule.name for schedule in schedules}) == len(schedules)
    assert [schedule.steps for schedule in fewer_steps(50)] == [33, 25, 17, 12, 10, 8]
