"""The decision with a forecast: which stored steps count, what is read for it, and where the weights land."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

import fxcache.calibrators  # noqa: F401  (fills the table of forecasters)
from fxcache.kernels import CONTROL_SIZE, Ask, Control, decide_reference
from tests.graphs import tell
from tests.kernels.tolerances import random

decide = torch.ops.fxcache.decide.default
residual_products = torch.ops.fxcache.residual_products.default
NAN = math.nan
TIMES, NOW = (9.0, 8.0, 7.0, 6.0), 11.0
"""Newest first; at equal distances, so that every forecaster uses all of them."""
FORECASTS = ("taylorseer 1", "taylorseer 3", "foca", "dmd 0 1e-08", "regression 0.0001")


@dataclass
class Stored:
    """Some steps as they lie in memory: ``slots`` says where, newest first, the rest is not a number."""

    slots: tuple[int, ...] = (0, 1, 2, 3)
    entries: int = 4
    times: tuple[float, ...] = TIMES
    present: Tensor = field(default_factory=lambda: random(6, 5, seed=90))
    by_age: list[Tensor] = field(default_factory=lambda: [random(6, 5, seed=age) for age in range(4)])
    values: list[Tensor] = field(default_factory=lambda: [random(3, 7, seed=50 + age) for age in range(4)])

    def __post_init__(self) -> None:
        self.history, self.cache = (self._placed(kept) for kept in (self.by_age, self.values))
        self.health = torch.full((2, self.entries), NAN)
        self.health[:, self.slots] = 0.0
        self.gram = self.cache.double().flatten(1) @ self.cache.double().flatten(1).T

    def _placed(self, kept: list[Tensor]) -> Tensor:
        placed = torch.full((self.entries, *kept[0].shape), NAN)
        for slot, value in zip(self.slots, kept, strict=False):
            placed[slot] = value
        return placed

    @property
    def observation(self) -> Tensor:
        return residual_products(self.present, None, self.history)

    def control(self, **told: object) -> Tensor:
        control = torch.zeros(CONTROL_SIZE, dtype=torch.float64)
        count, times = len(self.slots), self.times[: len(self.slots)]
        given = {"mode": Ask.DECIDE, "store": 1, "threshold": math.inf, "slot": 2, "count": count, "now": NOW}
        tell(control, **{**given, "times": times, "slots": self.slots, **told})
        return control

    def decide(self, forecast: str, singles: tuple[int, ...] = (), **told: object) -> tuple[bool, Tensor, Tensor]:
        """Return reuse, the weights and the control vector afterwards."""
        control = self.control(**told)
        grams = [self.gram] if forecast.startswith("dmd") else []
        clock = torch.zeros(3)
        reuse, slot, first, weights = decide(
            self.observation, grams, self.health, clock, control, forecast, list(singles)
        )
        assert (weights.dtype, weights.shape) == (torch.float32, (1, self.entries))
        assert (int(slot), int(first)) == ((-1, -1) if bool(reuse) else (int(control[Control.SLOT]), 0))
        return bool(reuse), weights[0], control


def polynomial(times: tuple[float, ...], now: float = NOW) -> list[float]:
    """Values at ``now`` of the polynomials that are 1 at one of the times and 0 at the others."""
    units = np.eye(len(times))
    return [float(np.polyval(np.polyfit(np.array(times), unit, len(times) - 1), now)) for unit in units]


@pytest.mark.parametrize("slots", [(0, 1, 2), (2, 0, 1), (3, 1, 0)])
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("bad", [NAN, math.inf])
@pytest.mark.parametrize("age", [0, 1, 2])
def test_steps_behind_an_unhealthy_one_are_not_used(slots, row, bad, age):
    stored = Stored(slots, by_age=[random(6, 5, seed=9 + k) for k in range(3)])
    stored.health[row, slots[age]] = bad
    control = stored.control()
    # sums that are nearly nothing: with products the order would depend on them
    sums = torch.tensor([0.01, 1.0])
    reuse, _, _, weights = decide(sums, [], stored.health, torch.zeros(3), control, "taylorseer 3", [])
    expected = torch.zeros(4)
    expected[list(slots[:age])] = torch.tensor(polynomial(TIMES[:age])) if age else torch.zeros(0)
    assert bool(reuse) == (age > 0) == bool(control[Control.FINITE])
    torch.testing.assert_close(weights[0], expected, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_not_stored_may_be_unhealthy():
    stored = Stored((1, 0), by_age=[random(6, 5), random(6, 5, seed=1)])
    assert stored.health[:, 2:].isnan().all()
    reuse, weights, control = stored.decide("taylorseer 3")
    assert reuse and control[Control.FINITE] and control[Control.MEASURED]
    assert not weights[2:].any()


def test_histories_of_one_entry_are_healthy_where_their_entry_is():
    stored = Stored((2, 1, 0))
    stored.health[1] = torch.tensor([0.0, NAN, NAN, NAN])
    sums = torch.tensor([0.01, 1.0])

    def weights(singles: list[int]) -> tuple[bool, list[bool]]:
        control = stored.control()
        reuse, _, _, found = decide(sums, [], stored.health, torch.zeros(3), control, "taylorseer 3", singles)
        return bool(reuse), (found[0] != 0).tolist()

    assert weights([1]) == (True, [True, True, True, False])
    assert weights([]) == (False, [False] * 4), "in a history of several entries the newest step is in slot 2"
    stored.health[1, 0] = NAN
    assert weights([1]) == (False, [False] * 4)


def test_an_old_step_in_slot_0_shortens_the_window_only():
    stored = Stored((2, 1, 0))
    stored.health[0, 0] = NAN
    reuse, weights, _ = stored.decide("taylorseer 1", singles=(1,))
    assert reuse and not weights[0] and weights[2]


@pytest.mark.parametrize("forecast", FORECASTS)
def test_weights_land_in_the_slots_of_their_steps(forecast):
    straight = Stored().decide(forecast)
    for slots in itertools.permutations(range(4)):
        reuse, weights, control = Stored(slots).decide(forecast)
        assert reuse
        torch.testing.assert_close(weights[list(slots)], straight[1], rtol=1e-5, atol=1e-6)
        assert float(control[Control.DIFFERENCE]) == pytest.approx(float(straight[2][Control.DIFFERENCE]), rel=1e-5)


@pytest.mark.parametrize("slots", [(4, 1, 6, 0), (0, 1, 2, 3), (7, 6, 5, 4)])
def test_weights_of_a_polynomial_by_slot(slots):
    stored = Stored(slots, entries=8)
    control = stored.control()
    _, _, _, weights = decide(torch.tensor([0.0, 1.0]), [], stored.health, torch.zeros(3), control, "taylorseer 3", [])
    expected = torch.zeros(8)
    expected[list(slots)] = torch.tensor(polynomial(TIMES))
    torch.testing.assert_close(weights[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("forecast", FORECASTS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_difference_is_the_distance_of_the_forecast(forecast, count):
    stored = Stored((3, 0, 2, 1)[:count])
    reuse, weights, control = stored.decide(forecast)
    forecast_value = sum(
        weight * stored.history[slot].double()
        for slot, weight in enumerate(weights.double().tolist())
        if slot in stored.slots
    )
    present = stored.present.double()
    expected = float((present - forecast_value).norm() / present.norm())
    assert reuse and control[Control.MEASURED]
    assert float(control[Control.DIFFERENCE]) == pytest.approx(expected, rel=1e-6)
    for factor, below in ((0.999, False), (1.001, True)):
        assert stored.decide(forecast, threshold=expected * factor)[0] is below


def test_regression_is_nearer_than_any_single_step():
    stored = Stored()
    present = stored.present.double()
    nearest = min(float((present - value.double()).norm() / present.norm()) for value in stored.by_age)
    assert float(stored.decide("regression 0")[2][Control.DIFFERENCE]) < nearest


@pytest.mark.parametrize("slots", [(0,), (2, 0, 1)])
def test_without_a_forecaster_the_forecast_is_the_newest_step(slots):
    stored = Stored(slots, entries=max(slots) + 1)
    control, singles = stored.control(), [0, 1] if len(slots) == 1 else []
    reuse, _, _, weights = decide(stored.observation, [], stored.health, torch.zeros(3), control, "", singles)
    present, newest = stored.present.double(), stored.by_age[0].double()
    assert bool(reuse) and weights.numel() == 0
    assert float(control[Control.DIFFERENCE]) == pytest.approx(float((present - newest).norm() / present.norm()), 1e-6)


def test_a_present_value_that_is_not_finite_is_computed():
    stored = Stored()
    stored.present[0, 0] = NAN
    for forecast in FORECASTS:
        reuse, _, control = stored.decide(forecast)
        assert not reuse and not control[Control.FINITE] and not control[Control.MEASURED]


def test_one_row_of_weights_per_gram():
    stored = Stored(values=[random(1, 1).expand(3, 7) * 2.0**-age + random(3, 7) * 3.0**-age for age in range(4)])
    other = stored.gram.flip(0, 1).contiguous()
    control = stored.control()
    inputs = stored.health, torch.zeros(3), control, "dmd 0 1e-08", []
    _, _, _, both = decide(torch.tensor([0.0, 1.0]), [stored.gram, other], *inputs)
    alone = [decide(torch.tensor([0.0, 1.0]), [gram], *inputs)[3] for gram in (stored.gram, other)]
    assert both.shape == (2, 4)
    assert torch.equal(both, torch.cat(alone)) and not torch.equal(*alone)


@pytest.mark.parametrize("forecast", ["", "taylorseer 2", "foca"])
def test_in_mode_reuse_nothing_is_read(forecast):
    """Tensors of the meta device have no values: reading one is an error."""
    stored = Stored()
    meta = [torch.empty(shape, device="meta") for shape in ((5, 5), (3,))]
    control = stored.control(mode=Ask.REUSE, threshold=-1.0, check_clock=1.0)
    health = stored.health.fill_(NAN) if forecast else torch.empty(2, 4, device="meta")
    reuse, slot, first, weights = decide_reference(meta[0], [], health, meta[1], control, forecast, [])
    assert (bool(reuse), int(slot), int(first)) == (True, -1, -1)
    assert weights.shape == ((1, 4) if forecast else (0,))
    assert bool(control[Control.REUSED]) and not control[Control.MEASURED] and not control[Control.RESTARTED]
    if forecast:
        assert int((weights != 0).sum()) == 3
    with pytest.raises((NotImplementedError, RuntimeError)):
        tell(control, mode=Ask.DECIDE)
        decide_reference(meta[0], [], health, meta[1], control, forecast, [])


def test_in_mode_compute_nothing_is_read():
    meta = [torch.empty(shape, device="meta") for shape in ((5, 5), (4, 4), (2, 4), (3,))]
    control = Stored().control(mode=Ask.COMPUTE, check_clock=1.0)
    reuse, slot, first, _ = decide_reference(meta[0], [meta[1]], meta[2], meta[3], control, "", [])
    assert (bool(reuse), int(slot), int(first)) == (False, 2, 0)


def test_in_mode_reuse_a_forecaster_gets_the_numbers_it_needs():
    stored, clock = Stored((3, 0, 2, 1)), torch.empty(3, device="meta")
    health, unread = stored.health.clone().fill_(NAN), torch.empty(5, 5, device="meta")
    for forecast, observation, grams in (
        ("regression 0.0001", stored.observation, []),
        ("dmd 0 1e-08", unread, [stored.gram]),
    ):
        asked = stored.decide(forecast)[1]
        control = stored.control(mode=Ask.REUSE)
        reuse, _, _, weights = decide_reference(observation, grams, health, clock, control, forecast, [])
        assert bool(reuse)
        assert torch.equal(weights[0], asked)


@pytest.mark.parametrize("mode", [Ask.DECIDE, Ask.REUSE])
def test_nothing_stored_is_computed(mode):
    stored = Stored(())
    for forecast in FORECASTS:
        reuse, weights, control = stored.decide(forecast, mode=mode, count=0)
        assert not reuse and not weights.any() and not control[Control.MEASURED]


@pytest.mark.parametrize(("threshold", "reused"), [(math.inf, True), (-math.inf, False)])
@pytest.mark.parametrize(("now", "restarted"), [(7.0, False), (9.0, True)])
def test_without_an_indicator_only_clock_and_health_count(threshold, reused, now, restarted):
    stored, clock = Stored(), torch.tensor([-1.0, 8.0, now])
    control = stored.control(threshold=threshold, check_clock=1)
    reuse, *_ = decide(None, [], stored.health, clock, control, "taylorseer 1", [])
    assert bool(reuse) == (reused and not restarted)
    assert bool(control[Control.RESTARTED]) == restarted and not control[Control.MEASURED]
    stored.health[1, 0] = NAN
    assert not bool(decide(None, [], stored.health, clock, control, "taylorseer 1", [])[0])


def test_what_is_not_a_forecaster_is_an_error_that_names_them():
    stored = Stored()
    with pytest.raises(ValueError, match=r"^forecast='taylor 1': expected one of dmd, foca, regression, taylorseer"):
        stored.decide("taylor 1")


@pytest.mark.parametrize("forecast", FORECASTS)
def test_registration(forecast):
    stored = Stored()
    grams = [stored.gram] if forecast.startswith("dmd") else []
    arguments = stored.observation, grams, stored.health, torch.ones(3), stored.control(), forecast, [0]
    torch.library.opcheck(decide, arguments)
