"""How a reused step is predicted: one module per calibrator, looked up by the option `calibrator`.

A calibrator sees the times of the computed steps that are stored, and scalar products of what was stored: never the
tensors, which are large, and never modules or model names. It returns one weight per stored value.
"""

from __future__ import annotations

from collections.abc import Callable

from fxcache.calibrators import dmd as _dmd
from fxcache.calibrators import foca as _foca
from fxcache.calibrators import regression as _regression
from fxcache.calibrators import taylorseer as _taylorseer
from fxcache.kernels import Forecaster, register_forecaster

__all__ = ["CALIBRATORS"]

CALIBRATORS: dict[str, Callable[..., Forecaster]] = {
    "taylorseer": _taylorseer.taylorseer,
    "foca": _foca.foca,
    "dmd": _dmd.dmd,
    "regression": _regression.regression,
}

for _name, _make in CALIBRATORS.items():
    register_forecaster(_name, _make)
