"""The ring of stored steps, and the times that a calibrator is told."""

from __future__ import annotations

import math
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcache.kernels import Control
from fxcache.runtime import generation, signals
from fxcache.runtime.attribution import Attribution, Lease, Mode, Outcome, Reason, TensorSpec
from fxcache.runtime.compiled import Link, read_outcome, with_state
from fxcache.runtime.generation import Branch, Generation
from tests.runtime.loop import DIM, Model, latents, schedule

CPU = torch.device("cpu")
SPECS = (TensorSpec((1, DIM), torch.float32, CPU),)
FOCA = {"calibrator": "foca", "residual_diff_threshold": 1.0, "max_warmup_steps": 1}
"""Three steps are stored."""


def begin(model: Model, time: object = None, specs: tuple[TensorSpec, ...] = SPECS) -> Lease:
    lease = model.begin(latents(), time, None)
    lease.state(specs)
    return lease


def step(model: Model, time: object, reused: bool) -> Lease:
    """One call that is reused or stored, as the graph may decide."""
    lease = begin(model, time)
    model.attribution.end(lease, Outcome(reused=reused and lease.mode is Mode.DECIDE))
    return lease


def seen(lease: Lease) -> list[tuple[int, int]]:
    return [(stored.slot, stored.step) for stored in lease.stored]


def test_slots_rotate_and_the_oldest_is_replaced() -> None:
    model, request = Model(Attribution(), **FOCA), Generation()
    expected = [
        ([], 0),
        ([(0, 0)], 1),
        ([(1, 1), (0, 0)], 2),
        ([(2, 2), (1, 1), (0, 0)], 0),
        ([(0, 3), (2, 2), (1, 1)], 1),
        ([(1, 4), (0, 3), (2, 2)], 2),
        ([(2, 5), (1, 4), (0, 3)], 0),
    ]
    with request:
        leases = [step(model, time, reused=False) for time in schedule(7)]
    assert [(seen(lease), lease.slot) for lease in leases] == expected


@given(st.lists(st.booleans(), max_size=20), st.integers(1, 4))
def test_the_last_computed_steps_are_stored(reused: list[bool], order: int) -> None:
    model = Model(Attribution(), **{**FOCA, "calibrator": "taylorseer", "taylorseer_order": order})
    kept: deque[int] = deque(maxlen=order + 1)
    slots: dict[int, int] = {}
    with Generation():
        for number, (time, wanted) in enumerate(zip(schedule(len(reused) + 1), [False, *reused], strict=True)):
            lease = step(model, time, wanted)
            assert [stored.step for stored in lease.stored] == list(kept)
            assert len({stored.slot for stored in lease.stored}) == len(kept)
            assert all(slots[stored.slot] == stored.step for stored in lease.stored), "its slot still holds the step"
            assert 0 <= lease.slot <= order
            if len(kept) < order + 1:
                assert lease.slot not in {stored.slot for stored in lease.stored}
            if not wanted:
                kept.appendleft(number)
                slots[lease.slot] = number


def test_without_a_calibrator_one_step_is_stored() -> None:
    model = Model(Attribution())
    with Generation():
        leases = [step(model, time, reused=False) for time in schedule(3)]
    assert [(seen(lease), lease.slot) for lease in leases] == [([], 0), ([(0, 0)], 0), ([(0, 1)], 0)]


def test_another_generation_begins_with_nothing_stored() -> None:
    model = Model(Attribution(), **FOCA)
    for times in (schedule(4), schedule(2)):
        leases = [step(model, time, reused=False) for time in times]
        assert (seen(leases[0]), leases[0].slot, leases[0].mode) == ([], 0, Mode.COMPUTE)
        assert seen(leases[1]) == [(0, 0)]


def test_a_restart_that_the_device_has_seen_leaves_its_own_step_only() -> None:
    model = Model(Attribution(host_readable=lambda tensor: False), **FOCA, calibrator_time="timestep")
    for time in (torch.tensor([1.0]), torch.tensor([0.5])):
        step(model, time, reused=False)
    lease = begin(model, torch.tensor([1.0]))
    assert seen(lease) == [(1, 1), (0, 0)] and lease.clock is not None
    model.attribution.end(lease, Outcome(restarted=True, time=(-1.0, 0.5, 1.0)))
    after = begin(model, torch.tensor([0.5]))
    assert [(stored.slot, stored.step) for stored in after.stored] == [(lease.slot, 0)]
    assert after.slot != lease.slot


def test_a_state_of_another_shape_has_nothing_stored() -> None:
    model = Model(Attribution(), **FOCA)
    with Generation():
        for time in schedule(3)[:2]:
            step(model, time, reused=False)
        lease = begin(model, torch.tensor([0.1]), (TensorSpec((2, DIM), torch.float32, CPU),))
        assert (lease.mode, lease.reason, lease.stored, lease.slot) == (Mode.COMPUTE, Reason.FIRST, (), 0)
        model.attribution.end(lease, Outcome())
        after = begin(model, torch.tensor([0.05]), (TensorSpec((2, DIM), torch.float32, CPU),))
        assert seen(after) == [(0, 2)] and after.mode is Mode.DECIDE


def test_an_aborted_call_leaves_nothing_stored() -> None:
    model = Model(Attribution(), **FOCA)
    with Generation():
        for time in schedule(4)[:2]:
            step(model, time, reused=False)
        lease = begin(model, schedule(4)[2])
        assert len(lease.stored) == 2
        model.attribution.abort(lease)
        after = step(model, schedule(4)[3], reused=True)
        assert (after.stored, after.slot, after.mode) == ((), 0, Mode.COMPUTE)


def test_a_call_that_leaves_no_trace_is_not_stored() -> None:
    model, x = Model(Attribution(), **FOCA), latents()
    with Generation():
        model(x, torch.tensor([1.0]), None)
        repeated = model.begin(x, torch.tensor([1.0]), None)
        assert not repeated.store and repeated.stored == ()
        model.attribution.end(repeated, Outcome())
        assert seen(begin(model, torch.tensor([0.5]))) == [(0, 0)]


@pytest.fixture
def named():
    """Let the pipeline say something about the next call."""

    def say(time: float | None, sigma: float | None, index: int) -> None:
        signals._cache_context.set(Branch("cond", index, None, time, sigma))

    return say


TIMES, SIGMAS = (900.0, 700.0, 100.0), (14.0, 3.0, 0.5)


def told(axis: str, host_readable: bool = True, say=None, steps: int = 3) -> tuple[list[float], float]:
    """What the third call is told of the two before it, and of itself."""
    model = Model(Attribution(host_readable=lambda tensor: host_readable), **FOCA, calibrator_time=axis)
    with Generation():
        for index in range(steps):
            if say is not None:
                say(TIMES[index], SIGMAS[index], index)
            lease = step(model, torch.tensor([TIMES[index]]), reused=False)
    return lease.times


@pytest.mark.parametrize("host_readable", [True, False])
def test_axis_of_steps(host_readable: bool) -> None:
    assert told("step", host_readable) == ([1.0, 0.0], 2.0)


def test_axis_of_the_time_that_the_model_is_called_with() -> None:
    assert told("timestep") == ([700.0, 900.0], 100.0)


def test_axes_that_the_pipeline_names(named) -> None:
    assert told("timestep", host_readable=False, say=named) == ([700.0, 900.0], 100.0)
    assert told("sigma", host_readable=False, say=named) == ([3.0, 14.0], 0.5)


@pytest.mark.parametrize(("axis", "host_readable"), [("timestep", False), ("sigma", True), ("sigma", False)])
def test_steps_count_where_the_host_does_not_know(axis: str, host_readable: bool) -> None:
    assert told(axis, host_readable) == ([1.0, 0.0], 2.0)


def test_one_time_that_is_not_known_makes_all_steps_count(named) -> None:
    for missing in range(3):

        def say(time: float, sigma: float, index: int, missing: int = missing) -> None:
            named(time, None if index == missing else sigma, index)

        assert told("sigma", say=say) == ([1.0, 0.0], 2.0)
    assert told("sigma", say=named) == ([3.0, 14.0], 0.5)


def test_two_equal_times_make_all_steps_count(named) -> None:
    def say(time: float, sigma: float, index: int) -> None:
        named(time, max(sigma, 3.0) if index else 3.0, index)

    assert told("sigma", say=say) == ([1.0, 0.0], 2.0)


def test_the_step_that_somebody_names_is_the_one_that_counts() -> None:
    model = Model(Attribution(), **FOCA)
    with Generation():
        for index in (0, 4, 5, 11):
            with generation.BranchContext("cond", index, None):
                lease = step(model, torch.tensor([1.0 - index / 20]), reused=False)
    assert lease.times == ([5.0, 4.0, 0.0], 11.0)


def test_the_graph_is_told_slots_and_times_by_age() -> None:
    """Through the compiled call's own code: the control vector is what the graph gets."""
    model, link, vectors = Model(Attribution(), **FOCA, calibrator_time="timestep"), Link(), []

    def graph(full: list[torch.Tensor]) -> torch.Tensor:
        vectors.append(full[1].clone())
        return full[1]

    call = with_state(graph, link, lambda flat: (TensorSpec((2, 3), torch.float32, CPU), *SPECS), CPU)
    times = (900.0, 800.0, 650.0, 500.0, 20.0)
    with Generation():
        for time in times:
            lease = model.begin(latents(), torch.tensor([time]), None)
            link.open(lease)
            call([latents()])
            outcome = read_outcome(link.control(), lease)
            model.attribution.end(lease, outcome)
            assert not outcome.reused
    last = vectors[-1].tolist()
    assert [last[slot] for slot in (Control.SLOT, Control.COUNT, Control.NOW)] == [1.0, 3.0, 20.0]
    assert last[Control.TIMES : Control.TIMES + 3] == [500.0, 650.0, 800.0]
    assert last[Control.SLOTS : Control.SLOTS + 3] == [0.0, 2.0, 1.0]
    assert not any(map(math.isnan, last))
    assert vectors[0][Control.COUNT] == 0
