"""``fxcache.calibrate``: measure a model once, for the methods that have to know it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxcache import checks
from fxcache.api import transformers_of
from fxcache.calibration.fit import fit_polynomial, mean_ratios
from fxcache.calibration.least_error import least_error_mask, moves_of, sensitivities_of
from fxcache.calibration.recording import Recorder
from fxcache.errors import OptionError, RefusalError, StateError
from fxcache.method_configs import MagCacheConfig, TeaCacheConfig
from fxcache.options import Options

__all__ = ["Calibration", "calibrate"]

_check_degree = checks.integer(1, 7)


@dataclass(frozen=True)
class Calibration:
    """What was measured of a model, and what the methods take of it."""

    model: str
    """Class of the module."""
    steps: int
    """Steps of one generation."""
    series: int
    """Branches of generations that were recorded."""
    rescale_coefficients: tuple[float, ...]
    """TeaCache: from the change of what the first block reads to that of the output, highest power first."""
    explained: float
    """Share of the variance of the changes of the output that this polynomial explains, at most 1."""
    magnitude_ratios: tuple[float, ...]
    """MagCache: one number per step; the first, which follows nothing, is 1."""
    deviation: float
    """How far one branch of one generation was from that table at most: 0.01 is 1 %."""
    changes: tuple[tuple[float, float], ...]
    """What was measured from step to step: change of what the first block reads, change of the output."""
    times: tuple[float, ...]
    """What the model was called with, step by step, in the first of the generations."""
    trunk_products: tuple[tuple[float, ...], ...]
    """[steps, steps]: of what the trunk adds at two steps, the mean product of one number."""
    sensitivities: tuple[float, ...]
    """Per step, how far the output moves for what the trunk adds: ratio of the L2 norms of their changes."""

    def steps_mask(self, computed_steps: int) -> list[int]:
        """Return one 1 (compute) or 0 (reuse) per step, for the option ``steps_computation_mask``.

        Of all masks with ``computed_steps`` ones, 1 to `steps`, the one under which forecasts from the last two
        computed steps can err least, by `trunk_products` and `sensitivities` (docs/policies/masks.md has the rule). It
        is meant to be followed as it is, ``steps_computation_policy="static"``, by generations of `steps` steps, with
        ``Fn_compute_blocks=0`` and a calibrator.

        Raises OptionError for another number.
        """
        count: int = checks.integer(1, self.steps)("computed_steps", computed_steps)
        reach = [move * share for move, share in zip(moves_of(self.times), self.sensitivities, strict=True)]
        return least_error_mask(self.trunk_products, reach, count)

    def teacache_config(self, **changes: Any) -> TeaCacheConfig:
        """Return the configuration of TeaCache with this polynomial; `changes` are its other fields."""
        return TeaCacheConfig(**{"rescale_coefficients": self.rescale_coefficients, **changes})

    def magcache_config(self, **changes: Any) -> MagCacheConfig:
        """Return the configuration of MagCache with this table; `changes` are its other fields."""
        return MagCacheConfig(**{"magnitude_ratios": self.magnitude_ratios, **changes})

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything into a JSON file."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Calibration:
        """Read what `save` has written. Raises OptionError for a file that holds something else."""
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise OptionError(f"{path}: expected JSON, {error}") from error
        names = set(cls.__dataclass_fields__)
        if not isinstance(found, Mapping) or set(found) != names:
            raise OptionError(f"{path}: expected an object with {', '.join(sorted(names))}")
        rows = ("rescale_coefficients", "magnitude_ratios", "times", "sensitivities")
        tables = ("changes", "trunk_products")
        tuples: dict[str, Any] = {name: tuple(map(float, found[name])) for name in rows}
        tuples |= {name: tuple(tuple(map(float, row)) for row in found[name]) for name in tables}
        return cls(**{**found, **tuples})

    def __str__(self) -> str:
        coefficients = ", ".join(f"{value:.6g}" for value in self.rescale_coefficients)
        ratios = ", ".join(f"{value:.4f}" for value in self.magnitude_ratios)
        counts = dict.fromkeys(max(1, round(self.steps / factor)) for factor in (2, 3, 4))
        masks = {count: "".join(map(str, self.steps_mask(count))) for count in counts}
        return "\n".join(
            [
                f"{self.model}: {self.series} branches of {self.steps} steps, {len(self.changes)} changes",
                f"rescale_coefficients  {coefficients}",
                f"                      explain {100 * self.explained:.1f} % of the variance",
                f"magnitude_ratios      {ratios}",
                f"                      a single branch deviates by {100 * self.deviation:.2g} % at most",
                *(f"steps_mask({count})".ljust(22) + mask for count, mask in masks.items()),
            ]
        )


def calibrate(target: object, run: Callable[[], object], degree: int = 4, trunk: tuple[str, ...] = ()) -> Calibration:
    """Let `run` generate with a pipeline or a module, uncached, and return what was measured of its transformer.

    `run` calls the target for one or more generations, all of the same number of steps, without gradients; a loop of
    its own enters `fxcache.generation()` for each. `degree` is that of the polynomial, 1 to 7; `trunk` is the option.
    The model runs operator by operator; whatever it was compiled with before is back afterwards.

    Raises RefusalError for a model whose trunk cannot be skipped as a whole, StateError where nothing was measured.

    Example:
        >>> import torch, fxcache
        >>> fxcache.calibrate(torch.nn.Linear(2, 2), lambda: None)
        Traceback (most recent call last):
        ...
        fxcache.errors.StateError: calibrate: run did not call the Linear
    """
    checked: int = _check_degree("degree", degree)
    modules = transformers_of(target)
    if len(modules) > 1:
        raise OptionError(f"target: expected one transformer, found {', '.join(modules)}; give calibrate one of them")
    (module,) = modules.values()
    options = Options(
        Fn_compute_blocks=0,
        inner_backend="eager",
        max_warmup_steps=1 << 30,
        trunk=trunk,
        calibrator_time="timestep",
    )
    recorder = Recorder(options)
    _record(module, recorder, run)
    name = type(module).__name__
    if not recorder.found:
        if recorder.refusals:
            raise RefusalError(recorder.refusals[0])
        raise StateError(f"calibrate: run did not call the {name}")
    return _fitted(name, recorder, checked)


def _record(module: nn.Module, recorder: Recorder, run: Callable[[], object]) -> None:
    before = module._compiled_call_impl
    try:
        module.compile(backend=recorder.backend)
        with torch.no_grad():
            run()
    finally:
        module._compiled_call_impl = before


def _fitted(name: str, recorder: Recorder, degree: int) -> Calibration:
    recorded = [series for series in recorder.series if series.changes]
    series = [each.changes for each in recorded]
    lengths = {tuple(change.step for change in changes) for changes in series}
    if not series:
        raise StateError("calibrate: no two steps of one generation were recorded; enter fxcache.generation() in run")
    if len(lengths) > 1:
        counts = ", ".join(str(len(steps) + 1) for steps in sorted(lengths))
        raise StateError(f"calibrate: expected generations of one number of steps, found {counts}")
    points = tuple((change.read, change.output) for changes in series for change in changes)
    coefficients, explained = fit_polynomial(points, degree)
    ratios, deviation = mean_ratios([[change.ratio for change in changes] for changes in series])
    return Calibration(
        model=name,
        steps=len(ratios) + 1,
        series=len(series),
        rescale_coefficients=coefficients,
        explained=explained,
        magnitude_ratios=(1.0, *ratios),
        deviation=deviation,
        changes=points,
        times=tuple(recorded[0].times),
        trunk_products=tuple(map(tuple, torch.stack([each.products() for each in recorded]).mean(0).tolist())),
        sensitivities=sensitivities_of([each.moved for each in recorded]),
    )
