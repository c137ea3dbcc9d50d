"""Who is denoising: generations and branches that somebody has named, and what becomes of calls that fail."""

from __future__ import annotations

import pytest
import torch

from fxcache.errors import OptionError, StateError
from fxcache.runtime import generation as runs
from fxcache.runtime.attribution import InputRoles, Mode, Reason
from fxcache.runtime.generation import Branch, BranchContext, Generation
from fxcache.runtime.signals import _cache_context
from tests.runtime.loop import Model, latents, schedule


def test_without_time_nothing_shows_where_a_generation_ends(attribution, cond):
    roles = InputRoles(parameters=(0, 1), latents=(2,), conditioning=(4,))
    model = Model(attribution, roles)
    assert model.run([None] * 3, cond) == "xxx"
    assert model.refused() == {"UNATTRIBUTED": 3}
    with Generation():
        assert model.run([None] * 3, cond) == "C.."
    period = Model(attribution, roles, num_inference_steps=3)
    assert period.run([None] * 7, cond) == "C..C..C"


@pytest.mark.parametrize("bounded", [False, True])
def test_number_of_steps_is_the_period_only_where_nobody_knows_better(attribution, cond, bounded):
    model = Model(attribution, num_inference_steps=3)
    if bounded:
        runs.begin_loop(3)
    assert model.run(schedule(5), cond) == ("C...." if bounded else "C..C.")
    runs.end_loop()


def test_loops_of_a_pipeline_share_nothing(model, cond):
    times = schedule(8)
    runs.begin_loop(8)
    assert model.run(times[:2], cond) == "C."
    runs.begin_loop(8)  # the first was broken off; the second goes on downwards with the same prompt
    assert model.live() == 0
    assert model.run(times[2:4], cond) == "C."
    runs.end_loop()
    assert model.live() == 0
    assert model.run(times[4:6], cond) == "C."  # a bare call afterwards
    assert [record.generation.split()[0] for record in model.records()] == ["loop", "loop", "ambient"]
    assert sum(len(record.steps) for record in model.records()) == 6


def test_a_loop_whose_end_will_show_waits_for_one_inside_it(model, cond):
    times = schedule(8)
    outer = runs.begin_loop(8)
    outer.seen_to_end = True
    assert model.run(times[:2], cond) == "C."
    inner = runs.begin_loop(8)
    assert model.run(times[:3], cond) == "C.."
    runs.end_loop()
    assert inner.over and not outer.over
    assert model.run(times[2:4], cond) == "..", "as if there had been no other"
    outer.end()
    assert not runs.current_run().bounded


def test_a_pipeline_ends_its_own_loop_only(model, cond):
    class Pipe:
        pass

    one, other = Pipe(), Pipe()
    outer = runs.begin_loop(8, one)
    outer.seen_to_end = True
    inner = runs.begin_loop(8, other)
    runs.end_loop(one)
    assert outer.over and not inner.over and runs.current_run() is inner
    runs.end_loop(one)
    assert not inner.over
    runs.end_loop(other)
    assert inner.over


def test_call_that_raises_leaves_no_state(model, cond):
    times = schedule(6)
    assert model.run(times[:2], cond) == "C."
    model.attribution.abort(model.begin(latents(), times[2], cond))
    assert model.run(times[3:], cond) == "C.."


def test_call_that_vanishes_counts_as_raised(model, cond):
    times = schedule(6)
    assert model.run(times[:2], cond) == "C."
    lease = model.begin(latents(), times[2], cond)
    assert model(latents(), times[3], cond) == "x"
    assert model.records()[0].reasons[Reason.BUSY] == 1
    del lease
    assert model.run(times[4:], cond) == "C."


def test_explicit_generations_take_turns(model, cond):
    first, second = Generation("first"), Generation("second")
    codes = {first: "", second: ""}
    for time in schedule(4):
        for request in codes:
            with request:
                codes[request] += model(latents(), time, cond)
    assert set(codes.values()) == {"C..."}
    assert [record.generation for record in model.records()] == ["first", "second"]
    first.close()
    assert model.live() == 1 and first.closed
    with pytest.raises(StateError, match="generation 'first' is closed"):
        first.__enter__()
    del second, codes, request
    assert model.live() == 0


def test_explicit_generation_wins_over_a_loop_and_nests(model, cond):
    times = schedule(4)
    outer, inner = Generation(), Generation()
    runs.begin_loop(None)
    with outer:
        assert model(latents(), times[0], cond) == "C"
        with inner, outer:
            assert model(latents(), times[1], cond) == "."
        assert model(latents(), times[2], cond) == "."
    assert model(latents(), times[3], cond) == "C"
    runs.end_loop()
    with outer:
        outer.close()
        assert model(latents(), times[3], cond) == "x", "nothing may be kept for a generation that is over"


def test_explicit_branches_need_no_stable_conditioning(model):
    codes = {"cond": "", "uncond": ""}
    for time in schedule(4):
        x = latents()
        for name in codes:
            with BranchContext(name):
                codes[name] += model(x, time, torch.randn(1, 3))
    assert set(codes.values()) == {"C..."}
    assert [record.branch for record in model.records()] == ["cond", "uncond"]


def test_explicit_step_overrides_time_and_latents(model):
    x, time = latents(), torch.tensor([0.5])
    codes = ""
    for step in (0, 1, 2, 5, 6, 6, 7, 0, 1):
        with BranchContext("cond", step_index=step):
            codes += model(x, time, None)
    assert codes == "C....C.C."
    assert [step.step for record in model.records() for step in record.steps] == [0, 1, 2, 5, 6, 6, 7, 0, 1]


def test_explicit_period(model):
    codes = ""
    for time in schedule(5):
        with BranchContext("cond", num_inference_steps=2):
            codes += model(latents(), time, None)
    assert codes == "C.C.C"


def test_step_of_the_pipeline_restarts_the_branch(attribution, cond):
    model, codes = Model(attribution, max_warmup_steps=2), ""
    for step in (2, 3, 4, 2, 3, 4):
        token = _cache_context.set(Branch("cond", step, 5))
        codes += model(latents(), torch.tensor([0.5]), cond)
        _cache_context.reset(token)
    assert codes == "CC.CC.", "the warmup counts this model's own calls, wherever its steps begin"


def test_source_of_the_order_changes(model, cond):
    assert model(latents(), 0.9, cond) == "C"
    token = _cache_context.set(None)
    with BranchContext("a"):
        assert model(latents(), 0.9, cond) == "C"
    with BranchContext("a", step_index=4):
        assert model(latents(), 0.8, cond) == "C"
    with BranchContext("a"):
        assert model(latents(), 0.7, cond) == "C"
    _cache_context.reset(token)
    assert model(latents(), 0.8, cond) == "."


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Generation(3), "name=3: expected None or a string"),
        (lambda: Generation(num_inference_steps=0), "num_inference_steps=0: expected None or an integer >= 1"),
        (lambda: BranchContext(None), "name=None: expected a string"),
        (lambda: BranchContext("a", step_index=-1), "step_index=-1: expected None or an integer >= 0"),
        (
            lambda: BranchContext("a", num_inference_steps=1.5),
            "num_inference_steps=1.5: expected None or an integer >= 1",
        ),
    ],
)
def test_wrong_arguments(make, sentence):
    with pytest.raises(OptionError) as caught:
        make()
    assert str(caught.value) == sentence


def test_reset_and_forget(attribution, model, cond):
    other = Model(attribution)
    times = schedule(6)
    assert model.run(times[:2], cond) == other.run(times[:2], cond) == "C."
    attribution.reset(model.parameters[:1])
    assert model.live() == 0 and len(model.records()) == 1
    assert model.run(times[2:4], cond) == "C."
    assert other.run(times[2:4], cond) == ".."
    attribution.forget(model.parameters)
    assert attribution.records(model.parameters) == []
    attribution.reset()
    assert other.run(times[4:], cond) == "C."


def test_lease_of_a_dropped_context_ends_quietly(model, cond):
    lease = model.begin(latents(), 0.5, cond)
    model.attribution.reset()
    assert lease.mode is Mode.COMPUTE
    assert model.finish(lease, latents()) == "x"
    assert model.live() == 0
