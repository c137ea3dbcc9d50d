"""The published methods on the trained digits model, a few steps each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("sklearn")

import fxcache
from benchmarks.digits.sample import DigitsPipeline, load_pipeline

STEPS = 10


def draw(pipeline: DigitsPipeline, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    (images,) = pipeline([3, 8], STEPS, 2.0, generator, output_type="pt", return_dict=False)
    return images


@pytest.fixture(scope="module")
def pipeline() -> DigitsPipeline:
    made = load_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def uncached(pipeline: DigitsPipeline) -> Iterator[Tensor]:
    yield draw(pipeline)
    fxcache.disable_cache(pipeline)


def drawn(pipeline: DigitsPipeline, uncached: Tensor, config: Any, calibrator: Any = None) -> tuple[list[str], float]:
    """The decisions of both branches, and the PSNR to the uncached pictures in dB."""
    fxcache.enable_cache(pipeline, config, calibrator, inner_backend="eager", on_refusal="raise")
    error = (draw(pipeline) - uncached).square().mean()
    return [made.decisions for made in fxcache.summary(pipeline).contexts], float(-10 * error.log10())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (fxcache.IntervalConfig(cache_interval=2), ["C.C.C.C.CC"] * 2),
        (fxcache.TeaCacheConfig(residual_diff_threshold=0.25), None),
        pytest.param(fxcache.EasyCacheConfig(residual_diff_threshold=0.35), None, marks=pytest.mark.slow),
        (fxcache.DBCacheConfig(steps_computation_mask="fast", steps_computation_policy="static"), ["CCC.C..C.C"] * 2),
    ],
)
def test_pictures_stay_close(pipeline: DigitsPipeline, uncached: Tensor, config: Any, words: list[str] | None) -> None:
    found, quality = drawn(pipeline, uncached, config)
    assert words is None or found == words
    assert all(word[0] == word[-1] == "C" and word.count(".") >= 3 for word in found), found
    assert quality > 30, (found, quality)


def test_magcache_with_a_table_that_was_measured(pipeline: DigitsPipeline, uncached: Tensor) -> None:
    calibration = fxcache.calibrate(pipeline, lambda: draw(pipeline, seed=1))
    assert (calibration.steps, calibration.series, len(calibration.changes)) == (STEPS, 2, 2 * (STEPS - 1))
    assert all(0.5 < ratio < 2 for ratio in calibration.magnitude_ratios)
    found, quality = drawn(pipeline, uncached, calibration.magcache_config(residual_diff_threshold=0.15))
    assert found[0].startswith("CC") and found[0].endswith("C") and found[0].count(".") >= 3, found
    assert quality > 35, (found, quality)


@pytest.mark.parametrize("computed_steps", [4, pytest.param(6, marks=pytest.mark.slow)])
def test_a_mask_that_was_measured(pipeline: DigitsPipeline, uncached: Tensor, computed_steps: int) -> None:
    mask = fxcache.calibrate(pipeline, lambda: draw(pipeline, seed=1)).steps_mask(computed_steps)
    words = "".join(".C"[digit] for digit in mask)
    assert words.count("C") == computed_steps
    static = {"Fn_compute_blocks": 0, "steps_computation_policy": "static", "max_warmup_steps": 0}
    config = fxcache.DBCacheConfig(steps_computation_mask=mask, **static)
    calibrator = fxcache.TaylorSeerCalibratorConfig(taylorseer_order=2)
    found, quality = drawn(pipeline, uncached, config, calibrator)
    assert found == [words] * 2
    fxcache.disable_cache(pipeline)
    # computed in a row at the start, as many steps are worth less
    found, worse = drawn(
        pipeline, uncached, config.reset(**{**static, "steps_computation_mask": sorted(mask)[::-1]}), calibrator
    )
    assert found[0].count("C") == computed_steps
    assert quality > worse + 5, (quality, worse)
