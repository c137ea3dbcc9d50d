"""Which calls share state, where nobody says it: from times, latents, conditioning, shapes and parameters alone."""

from __future__ import annotations

import gc

import pytest
import torch

from fxcache.runtime.attribution import InputRoles, Reason
from fxcache.runtime.generation import Branch, Generation
from fxcache.runtime.signals import _cache_context
from tests.runtime.loop import Model, latents, schedule


def views(steps: int) -> list[torch.Tensor]:
    """Times as schedulers hand them out: views into their schedule."""
    return list(torch.linspace(1000, 1, steps))


def test_branches_without_names_are_told_apart_by_their_conditioning(model, cond, uncond):
    assert model.run(schedule(4), cond, uncond) == "C... C..."
    assert [record.branch for record in model.records()] == ["branch 1", "branch 2"]


def test_branches_of_one_conditioning_are_told_apart_by_the_names_of_the_pipeline(model, cond):
    codes = {"pred_cond": "", "pred_cond_skip": ""}
    for time in schedule(4):
        x = latents()
        for name in codes:
            token = _cache_context.set(Branch(name))
            codes[name] += model(x, time, cond)
            _cache_context.reset(token)
    assert set(codes.values()) == {"C..."}
    assert [record.branch for record in model.records()] == ["pred_cond", "pred_cond_skip"]


def test_a_branch_that_pauses_goes_on(model, cond, uncond):
    codes = ""
    for step, time in enumerate(schedule(6)):
        x = latents()
        codes += model(x, time, cond)
        if step not in (2, 3):
            codes += model(x, time, uncond)
    assert codes == "CC" + ".." + "." + "." + ".." + ".."


def test_one_branch_without_any_conditioning(model):
    assert model.run(schedule(4)) == "C..."


@pytest.mark.parametrize("times", [schedule, views], ids=["values", "views"])
def test_same_prompt_again_starts_at_step_0(model, cond, times):
    steps = times(4)
    assert model.run(steps, cond) == "C..."
    assert model.run(steps, cond) == "C..."
    assert [record.segment for record in model.records()] == [0, 1]


@pytest.mark.parametrize("times", [schedule, views], ids=["values", "views"])
def test_one_step_runs_of_one_prompt_share_nothing(model, cond, times):
    steps = times(4)[:1]
    assert [model.run(steps, cond) for _ in range(3)] == ["C", "C", "C"]


def test_views_of_another_schedule_are_another_generation(model, cond):
    assert model.run(views(4)[:2], cond) == "C."
    assert model.run(views(4)[2:], cond) == "C."  # image to image, going on downwards: the values cannot tell


def test_views_must_go_forward_where_nobody_says_when_a_generation_ends(model, cond):
    steps = views(5)
    assert model.run(steps[3:4], cond) == "C"
    assert model.run(steps[1:], cond) == "C..."
    with Generation():
        assert model.run(steps[::-1], cond) == "C...."


def test_schedule_written_in_place_does_not_count_as_the_same(model, cond):
    steps = torch.linspace(1000, 1, 4)
    assert model.run([steps[0], steps[1]], cond) == "C."
    steps.mul_(0.5)
    assert model.run([steps[2], steps[3]], cond) == "C."


def test_time_may_ascend(model, cond):
    steps = schedule(4)[::-1]
    assert model.run(steps, cond) == "C..."
    assert model.run(steps, cond) == "C..."


def test_times_of_tokens_follow_the_largest(model, cond):
    steps = [torch.tensor([[0.0, time.item()]]) for time in schedule(4)]
    assert model.run(steps, cond) == "C..."
    assert model.run(steps, cond) == "C..."


def test_times_may_be_numbers(model, cond):
    assert model.run([1.0, 0.5, 0.2], cond) == "C.."
    assert model.run([1.0, 0.5, 0.2], cond) == "C.."


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_time_that_is_no_number_starts_again(model, cond, bad):
    assert model.run([1.0, 0.9, bad, 0.7, 0.6], cond) == "C.CC."


def test_equal_times_are_a_step_only_in_a_known_generation(model, cond):
    heun = [torch.tensor([time]) for time in (999.0, 749.0, 749.0, 499.0, 499.0)]
    assert model.run(heun, cond) == "C.C.C"
    with Generation():
        assert model.run(heun, cond) == "C...."


def test_time_turns_inside_a_known_generation(model, cond):
    with Generation(num_inference_steps=3):
        assert model.run(schedule(3) + schedule(3), cond) == "C..C.."  # chunks of a long video under one bar


def test_same_call_again_is_computed_and_leaves_no_trace(model, cond):
    first, second = latents(), latents()
    times = schedule(3)
    assert model(first, times[0], cond) == "C"
    assert model(second, times[1], cond) == "."
    assert [model(second, times[1].clone(), cond) for _ in range(2)] == ["x", "x"]
    assert model(latents(), times[2], cond) == "."
    assert model.records()[0].reasons == {Reason.WARMUP: 1, Reason.REUSED: 2, Reason.REPEATED: 2}


def test_latents_updated_in_place(model, cond):
    x, codes = latents(), ""
    for time in schedule(4):
        codes += model(x, time, cond)
        x.add_(1)
    assert codes == "C..."
    with Generation():  # Heun, in place
        for value, code in ((0.2, "C"), (0.1, "."), (0.1, ".")):
            assert model(x, torch.tensor([value]), cond) == code
            x.add_(1)


def test_latents_of_inference_mode_have_no_version(model, cond):
    with torch.inference_mode():
        x = torch.ones(1, 4)
        codes = ""
        for time in (1.0, 0.5, 0.5, 0.2):
            x.add_(1)
            codes += model(x, time, cond)
    assert codes == "C.x."


def test_conditioning_overwritten_in_place_is_another_branch(model, cond):
    times = schedule(6)
    assert model.run(times[:3], cond) == "C.."
    cond.fill_(5)
    assert model.run(times[3:], cond) == "C.."
    assert model.live() == 1, "what belongs to the old contents can never be asked for again"


def test_conditioning_that_dies_takes_its_state_along(model):
    times = schedule(20)
    for start in (0, 5, 10, 15):
        prompt = torch.ones(1, 3)
        assert model.run(times[start : start + 5], prompt) == "C....", (
            "an id given to a new object is not the old object"
        )
        assert model.live() == 1
        del prompt
        assert model.live() == 0
    assert len(model.records()) == 4


def test_conditioning_in_a_cycle_dies_with_it(model):
    cycle: list[object] = [torch.ones(1, 3)]
    cycle.append(cycle)
    model.run(schedule(3), cycle[0])
    del cycle
    gc.collect()
    assert model.live() == 0


def test_sizes_types_and_masks_have_their_own_state(model, cond):
    times = schedule(3)
    for x in (latents(1), latents(2), latents(1).double()):
        assert [model(x.clone(), time, cond) for time in times] == ["C", ".", "."]
    model.mask = torch.ones(2)
    assert model.run(schedule(3, first=0.1), cond) == "C.."


def test_graphs_of_one_trunk_share_state_and_others_do_not(attribution, cond):
    static, dynamic, skipping = (Model(attribution, signature=name) for name in ("trunk", "trunk", "trunk without 3"))
    dynamic.parameters = skipping.parameters = static.parameters
    times = schedule(4)
    assert static.run(times[:2], cond) == "C."
    assert dynamic.run(times[2:3], cond) == "."
    assert skipping.run(times[2:3], cond) == "C"
    assert static.run(times[3:], cond) == "."


def test_models_share_nothing(attribution, cond):
    one, two = Model(attribution), Model(attribution)
    for time in schedule(3):
        x = latents()
        assert one(x, time, cond) == two(x, time, cond)
    two.parameters = (one.parameters[0], two.parameters[1])  # one weight replaced: another model
    assert two(latents(), torch.tensor([0.1]), cond) == "C"


def test_options_share_nothing(attribution, cond):
    one, two = Model(attribution), Model(attribution, Fn_compute_blocks=2)
    two.parameters = one.parameters
    times = schedule(3)
    assert one.run(times[:2], cond) == "C."
    assert two.run(times[1:], cond) == "C."


def test_model_that_dies_leaves_nothing(attribution, cond):
    model = Model(attribution)
    model.run(schedule(3), cond)
    lease = model.begin(latents(), 0.1, cond)
    parameters = list(model.parameters)
    del model
    assert len(attribution.records()) == 1
    parameters.pop()
    assert attribution.records() == []
    attribution.abort(lease)


def test_model_without_parameters_lives_as_long_as_its_graph(attribution, cond):
    model = Model(attribution, InputRoles(latents=(2,), timestep=(3,), conditioning=(4,)))
    assert model.run(schedule(3), cond) == "C.."
    assert len(attribution.records()) == 1
    del model
    gc.collect()
    assert attribution.records() == []
