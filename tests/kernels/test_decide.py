"""The decision: a truth table."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fxcache.kernels import CONTROL_SIZE, Ask, Control, clock_restarted, decide_reference
from tests.graphs import tell

decide = torch.ops.fxcache.decide.default
NAN, INF = math.nan, math.inf


def control_for(**told: float) -> Tensor:
    control = torch.full((CONTROL_SIZE,), NAN, dtype=torch.float64)
    control[: Control.REUSED] = 0.0
    tell(
        control,
        **{"mode": Ask.DECIDE, "store": 1.0, "threshold": 0.1, "count": 1.0, "slots": 0.0, "terms": 0.0, **told},
    )
    return control


def rows(*health: float) -> Tensor:
    """One history of one entry per number."""
    return torch.tensor(health).view(-1, 1)


def decided(
    numerator: float = 0.05, denominator: float = 1.0, health: tuple[float, ...] = (0.0, 0.0), **told: float
) -> tuple[bool, bool, Tensor]:
    """Without a forecast: reuse, whether the step is stored, and the control vector afterwards."""
    control, sums = control_for(**told), torch.tensor([numerator, denominator])
    reuse, slot, first, weights = decide(sums, [], rows(*health), torch.zeros(3), control, "", range(len(health)))
    for result, dtype in ((reuse, torch.bool), (slot, torch.int64), (first, torch.int64)):
        assert (result.dtype, result.shape, result.device.type) == (dtype, (), "cpu")
    assert (weights.dtype, weights.shape) == (torch.float32, (0,))
    assert bool(control[Control.REUSED]) == bool(reuse)
    assert int(slot) == int(first) and int(slot) in (0, -1)
    return bool(reuse), int(slot) == 0, control


@pytest.mark.parametrize(
    ("numerator", "denominator", "threshold", "reuse", "difference"),
    [
        (0.05, 1.0, 0.1, True, 0.05),
        (0.1, 1.0, 0.1, False, 0.1),  # float32(0.1) is a little more than 0.1
        (0.5, 1.0, 0.5, False, 0.5),  # the threshold itself is not below the threshold
        (0.4999, 1.0, 0.5, True, 0.4999),
        (0.0, 1.0, 0.1, True, 0.0),
        (0.0, 0.0, 0.1, True, 0.0),
        (0.0, 0.0, 0.0, False, 0.0),
        (0.0, 1.0, -1.0, False, 0.0),
        (1.0, 0.0, 1e9, False, INF),
        (5.0, 1.0, 10.0, True, 5.0),
        (NAN, 1.0, 1e9, False, NAN),
        (1.0, NAN, 1e9, False, NAN),
        (INF, 1.0, 1e9, False, INF),
        (1.0, INF, 1e9, False, 0.0),
        (INF, INF, 1e9, False, NAN),
        (3e38, 1e-38, 1e9, False, 3e76),
    ],
)
def test_threshold(numerator, denominator, threshold, reuse, difference):
    got, store, control = decided(numerator, denominator, threshold=threshold)
    assert (got, store) == (reuse, not reuse)
    assert control[Control.DIFFERENCE].item() == pytest.approx(difference, rel=1e-5, nan_ok=True)
    finite = math.isfinite(numerator) and math.isfinite(denominator)
    assert bool(control[Control.FINITE]) == finite
    assert bool(control[Control.MEASURED]) == (finite and math.isfinite(difference))


@pytest.mark.parametrize(("mode", "may_store", "small"), list(itertools.product(Ask, [True, False], [True, False])))
def test_mode_and_permission(mode, may_store, small):
    reuse, store, control = decided(0.05 if small else 0.5, mode=mode, store=may_store)
    assert reuse == (mode == Ask.REUSE or (mode == Ask.DECIDE and small))
    assert store == (may_store and not reuse)
    assert bool(control[Control.MEASURED]) == (mode == Ask.DECIDE)


def test_mode_compute_looks_at_nothing():
    reuse, store, control = decided(NAN, NAN, (NAN,), mode=Ask.COMPUTE)
    assert (reuse, store) == (False, True)
    assert control[Control.FINITE]
    assert math.isnan(control[Control.DIFFERENCE])


@pytest.mark.parametrize("health", [(NAN, 0.0), (0.0, NAN), (INF, 0.0), (0.0, 0.0, 0.0, NAN)])
def test_unhealthy_state_is_never_reused(health):
    reuse, store, control = decided(0.0, 1.0, health)
    assert (reuse, store) == (False, True)
    assert not control[Control.FINITE]
    assert not control[Control.MEASURED]


@pytest.mark.parametrize(
    ("direction", "previous", "now", "repeat_allowed", "restarted"),
    [
        (-1.0, 900.0, 800.0, False, False),
        (-1.0, 800.0, 900.0, False, True),
        (1.0, 0.1, 0.2, False, False),
        (1.0, 0.2, 0.1, False, True),
        (0.0, 0.2, 0.1, False, False),  # direction not known yet
        (0.0, 0.1, 0.2, False, False),
        (-1.0, 800.0, 800.0, False, True),
        (-1.0, 800.0, 800.0, True, False),
        (0.0, 800.0, 800.0, False, True),
        (0.0, 800.0, 800.0, True, False),
        (-1.0, 800.0, 900.0, True, True),
        (-1.0, NAN, 900.0, True, True),
        (-1.0, 800.0, NAN, True, True),
        (0.0, NAN, NAN, True, True),
    ],
)
def test_clock(direction, previous, now, repeat_allowed, restarted):
    clock = torch.tensor([direction, previous, now])
    assert clock_restarted(direction, previous, now, repeat_allowed) == restarted
    control = control_for(check_clock=1.0, repeat_allowed=float(repeat_allowed))
    reuse, slot, *_ = decide(torch.tensor([0.01, 1.0]), [], rows(0.0, 0.0), clock, control)
    assert (bool(reuse), int(slot) == 0) == (not restarted, restarted)
    assert bool(control[Control.RESTARTED]) == restarted
    seen = control[Control.CLOCK_DIRECTION : Control.TIMES].tolist()
    assert seen == pytest.approx([direction, previous, now], nan_ok=True)


def test_a_clock_that_is_not_asked_for_is_not_looked_at():
    control = control_for()
    reuse, *_ = decide(torch.tensor([0.01, 1.0]), [], rows(0.0), torch.full((3,), NAN), control)
    assert bool(reuse)
    assert not control[Control.RESTARTED]
    assert control[Control.CLOCK_DIRECTION : Control.TIMES].isnan().all()


def test_what_the_host_said_stays():
    control = control_for(check_clock=1.0, threshold=0.25)
    tell(control, times=[7.0, 5.0, 4.0], slots=[0.0, 2.0, 1.0])
    told = control.clone()
    decide(torch.tensor([0.01, 1.0]), [], rows(0.0), torch.tensor([-1.0, 2.0, 1.0]), control)
    assert torch.equal(control[: Control.REUSED], told[: Control.REUSED])
    assert torch.equal(control[Control.TIMES :].nan_to_num(-1), told[Control.TIMES :].nan_to_num(-1))
    assert not control[Control.REUSED : Control.DIFFERENCE].isnan().any()


def test_the_same_every_time():
    controls = [control_for() for _ in range(3)]
    inputs = torch.tensor([0.0123, 0.456]), [], rows(0.0, 0.0), torch.zeros(3)
    results = [torch.stack(decide(*inputs, control)[:3]) for control in controls]
    results.append(torch.stack(decide_reference(*inputs, controls[0])[:3]))
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.equal(controls[1].nan_to_num(), controls[2].nan_to_num())


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled(backend):
    def step(sums, health, clock, control):
        reuse, slot, first, _ = decide(sums * 2, [], health, clock, control, "", [0])
        return torch.cond(reuse, torch.sin, torch.cos, (sums,)), slot, first

    compiled = torch.compile(step, backend=backend, fullgraph=True)
    with torch.no_grad():
        for numerator, reuse in ((0.01, True), (0.2, False)):
            sums, control = torch.tensor([numerator, 1.0]), control_for()
            out, slot, first = compiled(sums, rows(0.0), torch.zeros(3), control)
            torch.testing.assert_close(out, sums.sin() if reuse else sums.cos())
            assert int(slot) == int(first) == (-1 if reuse else 0)
            assert bool(control[Control.REUSED]) == reuse


@pytest.mark.parametrize("mode", list(Ask))
def test_registration(mode):
    # NaN in the vector would make opcheck's comparison of mutated inputs fail
    control = torch.zeros(CONTROL_SIZE, dtype=torch.float64)
    tell(control, mode=mode, check_clock=1.0, count=1.0)
    arguments = torch.tensor([0.1, 1.0]), [], rows(0.0, 0.0), torch.tensor([1.0, 2.0, 3.0]), control, "", [0, 1]
    torch.library.opcheck(decide, arguments)


@pytest.mark.parametrize(
    ("coefficients", "offset", "expected"),
    [
        ([1.0, 0.0], 0.0, 0.5),
        ([1.0, 0.0], 0.25, 0.75),
        ([2.0], 0.0, 2.0),
        ([4.0, -2.0, 0.125], 1.0, 1.125),
        ([1.0, -1.0], 0.25, 0.25),  # what is below 0 adds nothing
        ([0.0] * 7 + [3.0], 0.5, 3.5),
    ],
)
def test_a_difference_goes_through_the_polynomial_and_is_added(coefficients, offset, expected):
    told = {"terms": float(len(coefficients)), "offset": offset, "coefficients": coefficients}
    for threshold, reuse in ((expected, False), (expected * 1.001, True)):
        got, _, control = decided(0.5, 1.0, threshold=threshold, **told)
        assert got is reuse
        assert control[Control.DIFFERENCE].item() == pytest.approx(expected)


@pytest.mark.parametrize(("numerator", "denominator"), [(NAN, 1.0), (INF, 1.0), (1.0, 0.0)])
def test_what_is_not_finite_stays_so_behind_a_polynomial(numerator, denominator):
    got, _, control = decided(numerator, denominator, threshold=1e9, terms=2.0, offset=0.0, coefficients=[0.0, 0.1])
    assert got is False
    assert not control[Control.MEASURED]


@pytest.mark.parametrize(
    ("sums", "difference", "reuse"),
    [
        # moved by 3 in front; 2 in front made 8 behind, where 6 are
        ([3.0, 50.0, 8.0, 2.0, 6.0], 2.0, True),
        ([0.0, 50.0, 8.0, 2.0, 6.0], 0.0, True),
        ([3.0, 50.0, 0.0, 2.0, 6.0], 0.0, True),
        ([3.0, 50.0, 8.0, 0.0, 6.0], INF, False),
        ([0.0, 50.0, 8.0, 0.0, 6.0], 0.0, True),
        ([3.0, 50.0, 8.0, 2.0, 0.0], INF, False),
        ([NAN, 50.0, 8.0, 2.0, 6.0], NAN, False),
        ([3.0, 50.0, NAN, 2.0, 6.0], NAN, False),
        ([3.0, 50.0, 8.0, NAN, 6.0], NAN, False),
        ([3.0, 50.0, 8.0, 2.0, NAN], NAN, False),
    ],
)
def test_an_estimate_from_five_sums(sums, difference, reuse):
    control = control_for(threshold=2.5)
    got, _, _, _ = decide(torch.tensor(sums), [], rows(0.0), torch.zeros(3), control, "", [0])
    assert bool(got) is reuse
    assert control[Control.DIFFERENCE].item() == pytest.approx(difference, nan_ok=True)
    assert bool(control[Control.FINITE]) is not any(map(math.isnan, [sums[0], *sums[2:]]))


@pytest.mark.parametrize("mode", list(Ask))
@pytest.mark.parametrize(("made_for", "met"), [((4, 2), (4, 2)), ((4, 2), (4, 3)), ((0, 0), (4, 2)), ((4, 2), (0, 2))])
def test_state_of_another_size_is_neither_read_nor_written(mode, made_for, met):
    control = control_for(mode=mode)
    control[Control.SIZES : Control.SIZES + 2] = torch.tensor(made_for, dtype=torch.float64)
    arguments = (torch.tensor([0.05, 1.0]), [], rows(0.0), torch.zeros(3), control, "", [0])
    reuse, slot, first, _ = decide(*arguments, sizes=met)
    fits = made_for == met
    assert bool(reuse) == bool(control[Control.REUSED]) == (fits and mode != Ask.COMPUTE)
    assert int(slot) == int(first) == (0 if fits and mode == Ask.COMPUTE else -1)
    assert control[Control.SIZES : Control.SIZES + 2].tolist() == list(map(float, met))
