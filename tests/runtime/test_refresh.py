"""State that is dropped before a step of the generation, and where generations end then."""

from __future__ import annotations

import pytest
import torch

from fxcache.options import Options
from fxcache.runtime.attribution import Attribution, Mode, Outcome, Reason, TensorSpec
from fxcache.runtime.generation import BranchContext, Generation
from tests.runtime.loop import Model, latents, schedule


def explicit(steps: int, generations: int, hint: int | None, repeat: bool, warmup: int) -> list[str]:
    """The rule once more: one word per generation."""
    word = ""
    for step in range(steps):
        due = hint is not None and step >= hint
        begins = (step - step % hint if repeat else hint) if hint is not None and due else 0
        word += "C" if step - begins < warmup else "."
    return [word] * generations


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("hint", [None, 1, 3, 4, 8, 9])
@pytest.mark.parametrize("warmup", [1, 2])
def test_the_state_goes_before_the_step_of_the_hint(attribution, cond, hint, repeat, warmup):
    policy = "repeat" if repeat else "once"
    model = Model(attribution, force_refresh_step_hint=hint, force_refresh_step_policy=policy, max_warmup_steps=warmup)
    words = []
    for _ in range(3):
        with Generation():
            words.append(model.run(schedule(8), cond))
    assert words == explicit(8, 3, hint, repeat, warmup)
    assert [record.segment for record in model.records()] == [0, 0, 0], "a refresh is no other generation"
    assert [[step.step for step in record.steps] for record in model.records()] == [list(range(8))] * 3


def test_d11_a_refresh_does_not_move_the_end_of_the_generation(attribution):
    model = Model(attribution, num_inference_steps=8, force_refresh_step_hint=3)
    times = [None] * 24  # nothing but the number of steps shows where a generation ends
    word = model.run(times)
    assert [word[:8], word[8:16], word[16:]] == ["C..C...."] * 3


def test_d1_every_generation_of_n_steps_begins_with_step_0(attribution):
    model = Model(attribution, num_inference_steps=8)
    assert model.run([None] * 32) == "C......." * 4
    model = Model(attribution, num_inference_steps=12, max_warmup_steps=8)
    assert model.run([None] * 36) == "CCCCCCCC...." * 3
    mask = Model(
        attribution, num_inference_steps=8, steps_computation_mask="11001001", steps_computation_policy="static"
    )
    assert mask.run([None] * 16) == "CC..C..C" * 2


def test_d2_repeated_generations_need_no_refresh_by_hand(attribution):
    by_hint = Model(attribution, force_refresh_step_hint=8, force_refresh_step_policy="repeat")
    with Generation():
        assert by_hint.run(schedule(24)) == "C......." * 3


def test_d3_without_a_number_of_steps_the_time_shows_the_next_generation(attribution, cond):
    model = Model(attribution, max_warmup_steps=2)
    assert [model.run(schedule(8), cond) for _ in range(3)] == ["CC......"] * 3
    timeless = Model(attribution)
    assert timeless.run([None] * 6) == "x" * 6, "where nothing at all shows it, nothing is reused"
    assert timeless.refused() == {"UNATTRIBUTED": 6}


def test_d4_a_generation_that_stops_early_leaves_the_next_ones_whole(attribution, cond):
    model = Model(attribution, num_inference_steps=8)
    assert model.run(schedule(8)[:3], cond) == "C.."
    assert [model.run(schedule(8), cond) for _ in range(2)] == ["C......."] * 2


def test_limits_begin_again_and_the_mask_goes_on(attribution, cond):
    model = Model(attribution, force_refresh_step_hint=4, max_cached_steps=2)
    with Generation():
        assert model.run(schedule(8), cond) == "C..CC..C"
    mask = Model(attribution, force_refresh_step_hint=4, steps_computation_mask="11010010", max_warmup_steps=0)
    with Generation():
        assert mask.run(schedule(8), cond) == "CC.CC.C."


def test_steps_of_a_branch_are_counted_not_calls(attribution, cond, uncond):
    model = Model(attribution, force_refresh_step_hint=3)
    with Generation():
        assert model.run(schedule(6), cond, uncond) == "C..C.. C..C.."


@pytest.mark.parametrize(("steps", "word"), [((0, 1, 2, 3), "C..C"), ((0, 2, 4, 5), "C.C."), ((5, 6), "C.")])
def test_steps_that_the_user_counts(attribution, steps, word):
    model = Model(attribution, force_refresh_step_hint=3)
    codes = ""
    for step in steps:
        with BranchContext("cond", step_index=step):
            codes += model(latents(), 0.5)
    assert codes == word


def test_warmup_counts_from_the_hint_where_its_step_was_left_out(attribution):
    model = Model(attribution, force_refresh_step_hint=3, max_warmup_steps=2)
    codes = ""
    for step in (0, 1, 2, 4, 5, 6):
        with BranchContext("cond", step_index=step):
            codes += model(latents(), 0.5)
    assert codes == "CC.C..", "step 4 is the second one since the hint, step 5 the third"


def test_a_restart_that_only_the_device_sees_brings_the_hint_again():
    model = Model(Attribution(host_readable=lambda _: False), force_refresh_step_hint=3)
    cond = torch.ones(1, 3)
    assert model.run(schedule(6), cond) == "C..C.."
    assert model.run(schedule(6), cond) == "r..C.."


def test_a_restart_that_is_seen_late_counts_the_steps_since_then():
    model = Model(Attribution(host_readable=lambda _: False), force_refresh_step_hint=2, max_warmup_steps=3)
    cond = torch.ones(1, 3)
    assert model.run(schedule(10)[:1], cond) == "C"  # broken off, and in the warmup nobody asks for the time
    assert model.run(schedule(10), cond) == "CCCCr.....", "step 2 is long past, what was stored since then stays"


def test_history_of_a_calibrator_begins_again(attribution, cond):
    model = Model(attribution, force_refresh_step_hint=4, max_warmup_steps=2, calibrator="taylorseer")
    stored = []
    with Generation():
        for time in schedule(8):
            x = latents()
            lease = model.begin(x, time, cond)
            stored.append(len(lease.stored))
            model.finish(lease, x)
    assert stored == [0, 1, 2, 2, 0, 1, 2, 2]


def test_other_options_on_compiled_graphs(attribution, cond):
    model = Model(attribution, max_warmup_steps=2)
    base, changed = model.info.options, model.info.options.replace(max_warmup_steps=1, max_cached_steps=2)
    assert model.run(schedule(4), cond) == "CC.."
    x = latents()
    running = model.begin(x, torch.tensor([0.1]), cond)
    (held,) = running.state((TensorSpec(tuple(x.shape), x.dtype, x.device),))
    attribution.refresh(model.parameters, base, changed)
    assert running.mode is Mode.DECIDE and held.shape == x.shape, "a call ends as it has begun"
    attribution.end(running, Outcome(reused=True, difference=0.0))
    assert attribution.options(model.parameters) == {base: changed}
    assert model.run(schedule(6), cond) == "C..CCC"
    later = Model(attribution, max_warmup_steps=2, signature="another size")
    later.parameters = (model.parameters[0], torch.nn.Parameter(torch.zeros(3)))
    assert later.run(schedule(6), cond) == "C..CCC", "a graph that is compiled later follows them, too"
    attribution.refresh(model.parameters, base, base)
    assert model.run(schedule(6), cond) == "CC...."
    first, _ = attribution.records(model.parameters)
    assert [record.reasons[Reason.REUSED] for record in first.contexts] == [2, 2, 4], "what came before is still told"


def test_other_options_concern_these_parameters_alone(attribution, cond):
    one, two = Model(attribution), Model(attribution)
    attribution.refresh(one.parameters, one.info.options, one.info.options.replace(max_warmup_steps=3))
    attribution.refresh(one.parameters, Options(), Options(max_warmup_steps=5))
    assert one.run(schedule(4), cond) == "CCC." and two.run(schedule(4), cond) == "C..."
    attribution.forget(one.parameters)
    assert one.run(schedule(4), cond) == "C..."
