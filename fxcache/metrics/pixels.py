"""PSNR, SSIM and mean squared error, by torchmetrics in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import torch

from fxcache.metrics.errors import UnavailableError, require
from fxcache.metrics.frames import Frame
from fxcache.metrics.media import Media, open_media
from fxcache.metrics.pairing import pairs, shown
from fxcache.metrics.result import ItemValue, MetricResult

__all__ = ["compare", "mean_result", "mse", "psnr", "ssim"]

_WINDOW = 11
"""Side of the Gaussian window of SSIM: Wang et al. 2004, standard deviation 1.5."""


def psnr(a: Any, b: Any, *, progress: bool | None = False) -> MetricResult:
    """Return the peak signal-to-noise ratio in dB: the mean over the pairs, infinite if one of them is identical.

    `details` has the number of identical pairs, the mean over the other ones, and the value of all pixels taken as one
    picture. The peak is 255 for uint8, 65535 for uint16, 1 for floating values.
    """
    image = require("torchmetrics.image", "torchmetrics", "psnr")
    functional = require("torchmetrics.functional.image", "torchmetrics", "psnr")
    # torchmetrics makes a tensor of the base, which of a Python float would be float32
    settings = {"data_range": 1.0, "base": numpy.float64(10)}
    together = image.PeakSignalNoiseRatio(**settings).set_dtype(torch.float64)

    def one(first: Frame, second: Frame) -> float:
        units = first.unit(), second.unit()
        together.update(*units)
        return float(functional.peak_signal_noise_ratio(*units, **settings))

    items, peak = compare("psnr", a, b, one, progress)
    differing = [item.value for item in items if math.isfinite(item.value)]
    details = {
        "identical": len(items) - len(differing),
        "mean_of_differing": sum(differing) / len(differing) if differing else math.inf,
        "of_all_pixels": float(together.compute()),
        "data_range": peak,
    }
    return mean_result("psnr", "dB", True, items, details)


def mse(a: Any, b: Any, *, progress: bool | None = False) -> MetricResult:
    """Return the mean squared error, in squared levels: of 0 to 255 for uint8, 0 to 65535, or 0 to 1 for floats."""
    functional = require("torchmetrics.functional", "torchmetrics", "mse")

    def one(first: Frame, second: Frame) -> float:
        return float(functional.mean_squared_error(first.pixels.double(), second.pixels.double()))

    items, peak = compare("mse", a, b, one, progress)
    return mean_result("mse", "squared levels", False, items, {"data_range": peak})


def ssim(a: Any, b: Any, *, progress: bool | None = False) -> MetricResult:
    """Return the mean structural similarity (Wang et al. 2004): Gaussian window of 11 x 11, population covariance.

    The mean is over all channels, where the window lies inside of the picture: as in the paper and in scikit-image.
    """
    functional = require("torchmetrics.functional.image", "torchmetrics", "ssim")
    border = _WINDOW // 2

    def one(first: Frame, second: Frame) -> float:
        if min(first.pixels.shape[1:]) < _WINDOW:
            raise UnavailableError(f"ssim needs pictures of at least {_WINDOW}x{_WINDOW}, {first.name} is {first.size}")
        _, everywhere = functional.structural_similarity_index_measure(
            first.unit(), second.unit(), data_range=1.0, reduction="none", return_full_image=True
        )
        return float(everywhere[..., border:-border, border:-border].mean())

    items, peak = compare("ssim", a, b, one, progress)
    return mean_result("ssim", "", True, items, {"data_range": peak})


def compare(
    metric: str, a: Any, b: Any, one: Callable[[Frame, Frame], float], progress: bool | None
) -> tuple[tuple[ItemValue, ...], float]:
    """Return the value of every pair, and the range of values that all of them have."""
    first, second = open_media(a, "a"), open_media(b, "b")
    items, peak = [], 0.0
    for left, right in shown(pairs(first, second), metric, _total(first, second), progress):
        items.append(ItemValue(left.name, one(left, right)))
        peak = left.data_range
    return tuple(items), peak


def mean_result(
    metric: str,
    unit: str,
    higher_is_better: bool,
    items: tuple[ItemValue, ...],
    details: dict[str, Any],
    counted: str = "pairs",
) -> MetricResult:
    """Return the mean over the items as the value."""
    value = sum(item.value for item in items) / len(items)
    return MetricResult(metric, value, unit, higher_is_better, len(items), items, details, counted)


def _total(*media: Media) -> int | None:
    known = [each.frames for each in media if each.frames is not None]
    return min(known) if known else None
