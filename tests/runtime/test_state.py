"""State tensors: whose they are, how many there may be, and what happens when they do not fit."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch

from fxcache.runtime.attribution import Attribution, Mode, Reason, TensorSpec
from fxcache.runtime.generation import Generation
from fxcache.runtime.mailbox import Mailbox
from tests.runtime.loop import DIM, Model, latents, schedule

CPU = torch.device("cpu")
BYTES = 4 * DIM


def spec(*shape: int, dtype: torch.dtype = torch.float32) -> TensorSpec:
    return TensorSpec(shape, dtype, CPU)


def prompts(count: int) -> list[torch.Tensor]:
    return [torch.full((1, 3), float(index)) for index in range(count)]


def test_bytes_of_a_spec():
    assert [spec(2, 3).nbytes, spec(5, dtype=torch.bfloat16).nbytes, spec().nbytes, spec(0, 4).nbytes] == [24, 10, 4, 0]


def test_state_stays_the_same_tensors(model):
    wanted, (cond,) = (spec(2, 3), spec(4, dtype=torch.bfloat16)), prompts(1)
    seen = []
    for time in schedule(3):
        lease = model.begin(latents(), time, cond)
        seen.append(lease.state(wanted))
        model.finish(lease, latents())
        seen[-1][0].add_(1)
    assert [tensor.shape for tensor in seen[0]] == [(2, 3), (4,)] and seen[0][1].dtype is torch.bfloat16
    lease = model.begin(latents(), torch.tensor([0.01]), cond)
    assert lease.mode is Mode.DECIDE
    first, second = lease.state((spec(9), spec(9)))
    assert (lease.mode, lease.reason, lease.store) == (Mode.COMPUTE, Reason.FIRST, True)
    assert not first.any() and not second.any()


def test_state_starts_with_zeros_and_takes_writes_in_any_mode(model):
    (cond,) = prompts(1)
    with torch.inference_mode():
        lease = model.begin(latents(), 1.0, cond)
        (tensor,) = lease.state((spec(1, DIM),))
        assert not tensor.is_inference() and not tensor.any()
        tensor.add_(1)
        model.finish(lease, latents())
    tensor.add_(1)


def test_scratch_belongs_to_nobody(model):
    (cond,), x = prompts(1), latents()
    assert model(x, 1.0, cond) == "C"
    lease = model.begin(x, 1.0, cond)
    assert lease.reason is Reason.REPEATED and not lease.store
    mine = lease.state((spec(1, DIM),))
    mine[0].fill_(torch.nan)
    model.attribution.end(lease, None)
    (kept,) = model.begin(latents(), 0.5, cond).state((spec(1, DIM),))
    assert not kept.isnan().any()


def test_least_recently_used_context_goes_first(attribution):
    model, (a, b, c) = Model(attribution, max_contexts=2), prompts(3)
    times = iter(schedule(20))
    run = lambda *names: "".join(model(latents(), next(times), name) for name in names)  # noqa: E731
    assert run(a, b, a) == "CC."
    assert run(c) == "C"  # b goes
    assert run(a, c, b) == "..C"  # and now a
    assert run(c, b, a) == "..C"
    assert model.live() == 2


def test_bytes_are_bounded_before_they_are_taken(attribution):
    model, (a, b, c) = Model(attribution, max_state_bytes=2 * BYTES), prompts(3)
    times = iter(schedule(20))
    assert [model(latents(), next(times), name) for name in (a, b, a, c, a, b)] == ["C", "C", ".", "C", ".", "C"]
    assert sum(record.nbytes for record in model.records()) == 2 * BYTES


def test_state_that_never_fits_is_not_kept(attribution):
    model, (a, b) = Model(attribution, max_state_bytes=BYTES), prompts(2)
    assert model.run(schedule(3), a) == "C.."
    assert [model(latents(batch=2), time, b) for time in schedule(3)] == ["x"] * 3
    assert model.records()[-1].reasons == {Reason.TOO_LARGE: 3}
    assert model(latents(), torch.tensor([0.01]), a) == ".", "nothing was dropped in vain"


def test_context_in_use_is_not_dropped(attribution):
    model, (a, b) = Model(attribution, max_contexts=1), prompts(2)
    times = schedule(4)
    assert model(latents(), times[0], a) == "C"
    lease = model.begin(latents(), times[1], a)
    assert model(latents(), times[1], b) == "C"
    assert model.finish(lease, latents()) == "."
    assert model(latents(), times[2], a) == "."


def test_nothing_outlives_its_generation():
    attribution = Attribution()
    model, (cond,) = Model(attribution), prompts(1)
    with Generation() as request:
        lease = model.begin(latents(), 1.0, cond)
        kept = weakref.ref(lease.state((spec(1, DIM),))[0])
        model.finish(lease, latents())
        del lease
    assert kept() is not None
    request.close()
    gc.collect()
    assert kept() is None
    assert model.records()[0].nbytes == 0


def test_two_threads_take_turns_on_one_generation(model):
    (cond,), times = prompts(1), schedule(6)
    codes, request = "", Generation()
    for time in times:
        result: list[str] = []

        def step(time: torch.Tensor = time, result: list[str] = result) -> None:
            with request:
                result.append(model(latents(), time, cond))

        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
        codes += result[0]
    assert codes == "C....."


def test_second_call_of_a_context_at_the_same_moment_is_computed(model):
    (cond,), times, request = prompts(1), schedule(4), Generation()
    entered, leave = threading.Event(), threading.Event()
    results: list[str] = []

    def first() -> None:
        with request:
            lease = model.begin(latents(), times[0], cond)
            entered.set()
            leave.wait(10)
            results.append(model.finish(lease, latents()))

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(10)
    with request:
        results.append(model(latents(), times[1], cond))
    leave.set()
    thread.join()
    with request:
        results.append(model(latents(), times[2], cond))
    assert results == ["x", "C", "."]


def test_threads_without_a_word_are_generations_of_their_own(model):
    (cond,), times, codes = prompts(1), schedule(40), {}
    barrier = threading.Barrier(4)

    def run(name: int) -> None:
        barrier.wait()
        codes[name] = model.run(times, cond)

    threads = [threading.Thread(target=run, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes.values()) == {"C" + "." * 39}
    gc.collect()
    assert model.live() == 0, "a thread that is gone has no generation"


def test_message_left_while_the_lock_is_held_is_handled_before_it_is_let_go():
    handled: list[int] = []
    box: Mailbox[int] = Mailbox(handled.append)
    with box:
        box.post(1)
        assert handled == []
    assert handled == [1]
    box.post(2)
    assert handled == [1, 2]


def test_lock_is_let_go_when_the_work_fails():
    box: Mailbox[int] = Mailbox(lambda message: None)
    with pytest.raises(ZeroDivisionError), box:
        raise ZeroDivisionError
    with box:
        pass
