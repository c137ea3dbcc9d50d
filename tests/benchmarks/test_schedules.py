"""Masks of evenly spread steps."""

import pytest

from benchmarks.schedules import spread_mask


def test_a_mask_in_full() -> None:
    assert spread_mask(12, 5) == "110010001001"
    assert spread_mask(12, 5, compute_last=False) == "110010010100"


def test_more_ones_than_steps() -> None:
    with pytest.raises(ValueError, match="computed_steps"):
        spread_mask(4, 5)
