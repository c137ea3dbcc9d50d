"""Options that are right one by one and wrong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxcache.errors import OptionError

if TYPE_CHECKING:
    from fxcache.options import Options

__all__ = ["check_together"]


def check_together(options: Options) -> None:
    """Raise OptionError for the first option that others exclude."""
    if options.calibrator == "regression" and options.indicator == "residual":
        raise OptionError.of("indicator", options.indicator, "'forecast' or None with calibrator='regression'")
    for name in ("important_condition_threshold", "l1_hidden_states_diff_threshold"):
        if options.forecasts_indicator and getattr(options, name):
            raise OptionError.of(name, getattr(options, name), "its default with indicator='forecast'")
    _check_method(options)


def _check_method(options: Options) -> None:
    method = options.method
    if method == "magcache" and not options.magnitude_ratios:
        wanted = "one number > 0 per step with method='magcache'; fxcache.calibrate measures them"
        raise OptionError.of("magnitude_ratios", options.magnitude_ratios, wanted)
    if method in ("dbprune", "teacache", "easycache") and options.forecasts_indicator:
        # the forecast belongs to the last computed step, the sum to the previous one, and no block has an indicator
        if options.calibrator == "regression":
            raise OptionError.of("calibrator", options.calibrator, f"another one, or None, with method={method!r}")
        raise OptionError.of("indicator", options.indicator, f"'residual' or None with method={method!r}")
    excluded: dict[str, float | None] = {"l1_hidden_states_diff_threshold": None} if method != "dbcache" else {}
    if method == "easycache":
        excluded |= {"important_condition_threshold": 0.0, "downsample_factor": 1}
    for name, default in excluded.items():
        if getattr(options, name) != default:
            raise OptionError.of(name, getattr(options, name), f"its default with method={method!r}")
