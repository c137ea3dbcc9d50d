"""What the options of calibrators come to: how many steps are stored, and what stands in the graph."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fxcache.options import Options

__all__ = ["forecast_of", "history_of"]


def history_of(options: Options) -> int:
    """Return how many computed steps are stored per predicted stream."""
    lengths = {
        "taylorseer": options.taylorseer_order + 1,
        "foca": 3,
        "dmd": options.dmd_history,
        "regression": options.regression_history,
    }
    return lengths.get(options.calibrator or "", 1)


def forecast_of(options: Options) -> str:
    """Return the calibrator and its numbers as `fxcache.kernels.forecaster` reads them; empty for none."""
    if not options.calibrator:
        return ""
    limit = math.inf if options.calibrator_max_gain is None else options.calibrator_max_gain
    numbers: dict[str, tuple[float, ...]] = {
        "taylorseer": (options.taylorseer_order, limit),
        "foca": (limit,),
        "dmd": (options.dmd_rank, options.dmd_ridge, limit),
        "regression": (options.regression_ridge, limit),
    }
    return " ".join(map(str, [options.calibrator, *numbers[options.calibrator]]))
