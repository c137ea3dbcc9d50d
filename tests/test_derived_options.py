"""What follows from the options: whether anything can be reused, blocks, histories, forecast, indicator."""

from __future__ import annotations

import pytest

import fxcache.calibrators  # noqa: F401  (fills the table of forecasters)
from fxcache.errors import OptionError
from fxcache.kernels import MAX_ENTRIES, forecaster
from fxcache.options import Options


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({}, True),
        ({"residual_diff_threshold": 0}, False),
        ({"residual_diff_threshold": -1}, False),
        ({"max_cached_steps": 0}, False),
        ({"max_continuous_cached_steps": 0}, False),
        ({"residual_diff_threshold": 0, "l1_hidden_states_diff_threshold": 0.1}, True),
        ({"l1_hidden_states_diff_threshold": 0}, False),
        ({"steps_computation_mask": "111"}, False),
        ({"steps_computation_mask": "111", "steps_computation_policy": "static"}, False),
        ({"steps_computation_mask": "110"}, True),
        ({"steps_computation_mask": "110", "residual_diff_threshold": 0}, False),
        ({"steps_computation_mask": "110", "max_cached_steps": 0}, False),
        ({"steps_computation_mask": "110", "steps_computation_policy": "static", "residual_diff_threshold": 0}, True),
        ({"steps_computation_policy": "static", "residual_diff_threshold": 0}, False),
    ],
)
def test_can_reuse(mapping: dict[str, object], expected: bool):
    assert Options.from_mapping(mapping).can_reuse is expected


def test_the_l1_threshold_replaces_the_residual_one():
    assert Options(residual_diff_threshold=0.1).effective_threshold == 0.1
    assert Options(residual_diff_threshold=0.1, l1_hidden_states_diff_threshold=0.2).effective_threshold == 0.2


@pytest.mark.parametrize(
    ("length", "first"), [(2, 1), (4, 1), (7, 1), (8, 2), (12, 3), (31, 7), (32, 8), (57, 8), (1000, 8)]
)
def test_unset_fn_is_eight_but_at_most_a_quarter(length: int, first: int):
    assert Options().resolve_blocks(length) == (first, 0)


def test_explicit_blocks_are_taken_as_they_are():
    assert Options(Fn_compute_blocks=10, Bn_compute_blocks=1).resolve_blocks(12) == (10, 1)


@pytest.mark.parametrize(
    ("first", "last", "length", "sum_of"),
    [
        (6, 6, 12, "Fn_compute_blocks=6, Bn_compute_blocks=6"),
        (12, 0, 12, "Fn_compute_blocks=12, Bn_compute_blocks=0"),
        (None, 9, 12, "Fn_compute_blocks=3 (unset), Bn_compute_blocks=9"),
        (None, 0, 1, "Fn_compute_blocks=1 (unset), Bn_compute_blocks=0"),
    ],
)
def test_no_block_left_is_an_error_with_the_numbers(first: int | None, last: int, length: int, sum_of: str):
    with pytest.raises(OptionError) as caught:
        Options(Fn_compute_blocks=first, Bn_compute_blocks=last).resolve_blocks(length)
    assert str(caught.value) == (
        f"{sum_of}: expected a sum below {length}, the number of blocks of this trunk; none would be left to reuse"
    )


@pytest.mark.parametrize(
    ("mapping", "history", "forecast", "forecasts_indicator"),
    [
        ({}, 1, "", False),
        ({"taylorseer_order": 3, "dmd_history": 8, "regression_history": 7}, 1, "", False),
        ({"indicator": "forecast"}, 1, "", True),
        ({"calibrator": "taylorseer"}, 2, "taylorseer 1 3.0", False),
        ({"calibrator": "taylorseer", "taylorseer_order": 4, "indicator": "forecast"}, 5, "taylorseer 4 3.0", True),
        ({"calibrator": "foca"}, 3, "foca 3.0", False),
        ({"calibrator": "foca", "calibrator_max_gain": None}, 3, "foca inf", False),
        ({"calibrator": "dmd"}, 6, "dmd 0 1e-08 3.0", False),
        ({"calibrator": "dmd", "dmd_history": 8, "dmd_rank": 2, "dmd_ridge": 0.25}, 8, "dmd 2 0.25 3.0", False),
        ({"calibrator": "regression"}, 3, "regression 0.03 3.0", True),
        ({"calibrator": "regression", "regression_history": 8, "regression_ridge": 0}, 8, "regression 0.0 3.0", True),
    ],
)
def test_histories_and_forecasts(mapping: dict[str, object], history: int, forecast: str, forecasts_indicator: bool):
    made = Options.from_mapping(mapping)
    assert (made.history, made.forecast, made.forecasts_indicator) == (history, forecast, forecasts_indicator)
    assert history <= MAX_ENTRIES
    if forecast:
        assert forecaster(forecast).needs_products == (mapping["calibrator"] == "regression")


@pytest.mark.parametrize(
    ("mapping", "observes"),
    [
        ({}, True),
        ({"steps_computation_mask": "10"}, True),
        ({"steps_computation_policy": "static"}, True),
        ({"steps_computation_mask": "10", "steps_computation_policy": "static"}, False),
        ({"steps_computation_mask": "10", "steps_computation_policy": "static", "calibrator": "dmd"}, False),
        ({"steps_computation_mask": "10", "steps_computation_policy": "static", "calibrator": "regression"}, True),
    ],
)
def test_only_a_static_mask_needs_no_indicator(mapping: dict[str, object], observes: bool):
    assert Options.from_mapping(mapping).observes is observes
