"""The time of a call on the host and on a device that the host may not read."""

from __future__ import annotations

import math

import pytest
import torch

from fxcache.runtime.attribution import Attribution, Mode, Reason
from fxcache.runtime.clock import DeviceClock, HostClock, Reading, read_time
from fxcache.runtime.generation import BranchContext, Generation
from tests.runtime.loop import Model, latents, schedule


def never(_: torch.Tensor) -> bool:
    """A device of its own: no timestep may be read."""
    return False


def always(_: torch.Tensor) -> bool:
    return True


@pytest.fixture
def cond() -> torch.Tensor:
    return torch.ones(1, 3)


def device_model(**changes) -> Model:
    return Model(Attribution(host_readable=never), **changes)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (3, 3.0),
        (0.25, 0.25),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([7]), 7.0),
        (torch.tensor([0.0, 2.0, 1.0]), 2.0),
        (torch.tensor([0.5, 0.5], dtype=torch.bfloat16), 0.5),
        (torch.tensor(5.0)[None].expand(4), 5.0),
        (torch.zeros(0), None),
        (torch.tensor(1j), None),
        (None, None),
        ("now", None),
    ],
)
def test_values_are_read(source, expected):
    reading = read_time(source, always)
    assert (None if reading is None else reading.value) == expected
    assert reading is None or reading.storage is None


def test_views_are_not_read():
    times = torch.linspace(1000, 1, 5)
    for index in range(5):
        for view in (times[index], times[index : index + 1], times[index].expand(3), times[index][None, None]):
            reading = read_time(view, never)
            assert reading is not None and reading.value == index and reading.storage is not None
    assert read_time(times[1:3], never) is None
    huge = torch.zeros(1 << 19)
    assert read_time(huge[7], never) is None, "a storage that long is no schedule"


def test_readings_of_different_schedules_cannot_be_compared():
    times, others = torch.linspace(1, 0, 3), torch.linspace(1, 0, 3)
    before, after = read_time(times[0], never), read_time(times[1], never)
    assert before is not None and after is not None
    assert before.comparable(after)
    assert not before.comparable(read_time(others[1], never))  # type: ignore[arg-type]
    assert not before.comparable(Reading(0.5)) and not Reading(0.5).comparable(before)
    times.add_(1)
    assert not before.comparable(read_time(times[1], never))  # type: ignore[arg-type]


@pytest.mark.parametrize("sign", [1, -1])
def test_direction_is_learnt_from_the_first_move(sign):
    clock = HostClock()
    for value in (5.0, 5.0, 6.0, 6.0, 9.0):
        assert not clock.restarts(Reading(sign * value), bounded=True)
        clock.advance(Reading(sign * value))
    assert clock.direction == sign
    assert clock.restarts(Reading(sign * 8.0), bounded=True)
    assert clock.restarts(Reading(sign * 9.0), bounded=False)
    assert clock.restarts(Reading(math.nan), bounded=True)


def restarts(times: list[float], repeat_allowed: bool = True, reported: bool = True) -> str:
    """Steps since the last restart at every call; "!" where the decision is told of a restart."""
    clock = DeviceClock(torch.device("cpu"))
    clock.begin(torch.tensor(times[0]))
    told = ""
    for time in times[1:]:
        direction, before, now = clock.advance(torch.tensor([time]), repeat_allowed, reported).tolist()
        assert math.isnan(now) == math.isnan(time)
        told += f"{abs(direction) - 1:.0f}" + ("!" if math.isnan(before) else "")
    return told


@pytest.mark.parametrize(
    ("times", "repeat_allowed", "expected"),
    [
        ([5, 4, 3, 2], True, "123"),
        ([2, 3, 4], True, "12"),
        ([5, 4, 5, 4, 3], True, "10!12"),
        ([5, 5, 4, 5], True, "120!"),
        ([5, 5, 4, 3], False, "0!12"),
        ([5, 4, math.nan, 5, 4], True, "10!0!1"),
    ],
)
def test_device_clock(times, repeat_allowed, expected):
    assert restarts(times, repeat_allowed) == expected


def test_device_clock_remembers_a_restart_until_it_is_reported():
    assert restarts([5, 4, 5, 4, 3], reported=False) == "10!1!2!"


@pytest.mark.parametrize("descending", [True, False])
def test_device_time_restarts(cond, descending):
    model = device_model()
    times = schedule(4) if descending else schedule(4)[::-1]
    assert model.run(times, cond) == "C..."
    assert model.run(times, cond) == "r..."
    assert [(record.segment, len(record.steps)) for record in model.records()] == [(0, 4), (1, 4)]
    assert model.records()[1].steps[0].reason is Reason.RESTART


def test_device_time_repeats(cond):
    heun = [torch.tensor([time]) for time in (999.0, 749.0, 749.0, 499.0)]
    model = device_model()
    assert model.run(heun, cond) == "C.r."
    with Generation():
        assert model.run(heun, cond) == "C..."


def test_same_call_again_on_a_device(cond):
    model, x = device_model(), latents()
    assert model.run(schedule(3), cond) == "C.."
    assert [model(x, torch.tensor([0.1]), cond) for _ in range(2)] == [".", "x"]
    with torch.inference_mode(), Generation():
        x = latents()
        assert model(x, torch.tensor([0.9]), cond) == "C"
        x.add_(1)  # leaves no trace in an inference tensor
        assert model(x, torch.tensor([0.8]), cond) == "."
        assert model(x, torch.tensor([0.8]), cond) == "r"


def test_warmup_of_a_generation_that_the_host_did_not_see_begin(cond):
    model = device_model(max_warmup_steps=4)
    assert model.run(schedule(3), cond) == "CCC"
    assert model.run(schedule(7), cond) == "CrCC..."  # the second call is the first that asks the device
    assert [step.step for step in model.records()[-1].steps] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("limit", "first"),
    [({"max_cached_steps": 2}, "C..CCC"), ({"max_continuous_cached_steps": 2}, "C..C..")],
)
def test_limits_end_with_the_generation(cond, limit, first):
    model = device_model(**limit)
    assert model.run(schedule(6), cond) == first
    assert model.run(schedule(6), cond) == "r" + first[1:]
    reasons = [step.reason for step in model.records()[0].steps]
    assert reasons[3] in (Reason.MAX_CACHED, Reason.MAX_CONTINUOUS)


def test_device_is_not_asked_while_the_schedule_decides(cond):
    model = device_model(max_warmup_steps=3)
    for time in schedule(3):
        lease = model.begin(latents(), time, cond)
        assert lease.mode is Mode.COMPUTE and lease.clock is None
        model.finish(lease, latents())
    lease = model.begin(latents(), torch.tensor([0.1]), cond)
    assert lease.mode is Mode.DECIDE and lease.clock is not None and lease.clock.shape == (3,)
    model.finish(lease, latents())


def test_device_is_not_asked_about_announced_steps_that_the_schedule_decides(cond):
    fixed = {"max_warmup_steps": 1, "steps_computation_mask": "1000000", "steps_computation_policy": "static"}

    def modes(model: Model) -> list[Mode]:
        found = []
        for time in schedule(4):
            lease = model.begin(latents(), time, cond)
            found.append(lease.mode)
            model.finish(lease, latents())
        return found

    assert modes(device_model(**fixed)) == [Mode.COMPUTE, *[Mode.DECIDE] * 3]
    with Generation():  # nobody says how long
        assert modes(device_model(**fixed)) == [Mode.COMPUTE, *[Mode.DECIDE] * 3]
    with Generation(num_inference_steps=3):
        assert modes(device_model(**fixed)) == [Mode.COMPUTE, Mode.REUSE, Mode.REUSE, Mode.DECIDE]


def test_device_clock_is_off_where_the_step_is_known(cond):
    model, codes = device_model(), ""
    for step in (0, 1, 2, 0, 1):
        with BranchContext("cond", step_index=step):
            lease = model.begin(latents(), torch.tensor([0.5]), cond)
            assert lease.clock is None
            codes += model.finish(lease, latents())
    assert codes == "C..C."


def test_views_need_no_device_clock(cond):
    model, times = device_model(), torch.linspace(1, 0.1, 4)
    for _ in range(2):
        for time in times:
            lease = model.begin(latents(), time, cond)
            assert lease.clock is None
            model.finish(lease, latents())
    assert [len(record.steps) for record in model.records()] == [4, 4]


def test_source_of_the_time_changes(cond):
    model, times = device_model(), torch.linspace(1, 0.1, 6)
    assert model.run(list(times[:2]), cond) == "C."
    assert model.run([time.clone() for time in times[2:4]], cond) == "C."
    assert model.run(list(times[4:]), cond) == "C."


def test_clock_survives_inference_mode(cond):
    model, times = device_model(), schedule(4)
    with torch.inference_mode():
        assert model.run(times[:2], cond) == "C."
    with torch.no_grad():
        assert model.run(times[2:], cond) == ".."
