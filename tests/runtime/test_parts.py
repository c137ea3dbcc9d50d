"""Calls of one step about parts of one picture (tiles, windows of a video): one prompt, one time, other latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fxcache.runtime.attribution import Attribution, TensorSpec
from fxcache.runtime.clock import telling
from fxcache.runtime.generation import BranchContext, Generation
from tests.runtime.loop import ROLES, Model, latents, schedule

STEPS = 4
WORD = "C..."


def views(steps: int) -> list[torch.Tensor]:
    times = torch.linspace(1000, 1, steps)
    return [times[step] for step in range(steps)]


def play(model: Model, times: list[torch.Tensor], parts: Callable[[int], int], *texts: torch.Tensor) -> list[str]:
    """A loop; in every step each of its parts is called with every text. The words come part by part."""
    words: dict[tuple[int, int], str] = {}
    for step, time in enumerate(times):
        for part in range(parts(step)):
            x = latents()
            for branch, text in enumerate(texts):
                words[part, branch] = words.get((part, branch), "") + model(x, time, text)
    return [words[place] for place in sorted(words)]


@pytest.mark.parametrize("times", [schedule, views], ids=["values", "views"])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_every_part_has_its_own(model, cond, uncond, parts, times):
    with Generation():
        assert play(model, times(STEPS), lambda _: parts, cond, uncond) == [WORD] * 2 * parts
    assert len(model.records()) == 2 * parts


def test_state_is_that_of_the_part(attribution, cond):
    """What a part reads is what it has stored itself."""
    model, stored = Model(attribution), {}
    with Generation():
        for step, time in enumerate(schedule(STEPS)):
            for part in range(3):
                x = latents()
                lease = model.begin(x, time, cond)
                (state,) = lease.state((TensorSpec(tuple(x.shape), x.dtype, x.device),))
                if step == 0:
                    state.fill_(part)
                stored.setdefault(part, set()).add(float(state[0, 0]))
                model.finish(lease, x)
    assert stored == {0: {0.0}, 1: {1.0}, 2: {2.0}}


def test_a_part_that_begins_late_and_one_that_ends_early(model, cond):
    counts = [2, 2, 3, 3, 1, 1]
    with Generation():
        assert play(model, schedule(6), lambda step: counts[step], cond) == ["C.....", "C...", "C."]


@pytest.mark.parametrize("parts", [1, 3])
def test_second_order(model, cond, parts):
    """One picture goes on at the time that comes again; of several parts each evaluation is one of its own."""
    values = [1.0, 0.75, 0.75, 0.5, 0.5, 0.25]
    with Generation():
        words = play(model, [torch.tensor([value]) for value in values], lambda _: parts, cond)
    # "C": of the first time that came again
    assert words == (["C....."] if parts == 1 else ["C.C..."] * parts)


def test_a_branch_that_begins_late_under_second_order(model, cond, uncond):
    """Its first time comes twice, and the run is known to come back to times."""
    words = {"cond": "", "uncond": ""}
    with Generation():
        for value in (1.0, 0.75, 0.75, 0.5, 0.5, 0.25):
            words["cond"] += model(latents(), torch.tensor([value]), cond)
            if value <= 0.5:
                words["uncond"] += model(latents(), torch.tensor([value]), uncond)
    assert words == {"cond": "C.....", "uncond": "C.."} and len(model.records()) == 2


def test_the_same_part_once_more_leaves_no_trace(model, cond):
    with Generation():
        for step, time in enumerate(schedule(STEPS)):
            both = latents(), latents()
            words = [model(x, time, cond) for x in (*both, both[1], both[0])]
            assert words == [*(["C", "C"] if step == 0 else [".", "."]), "x", "x"]


def test_windows_one_after_the_other_begin_anew(model, cond):
    with Generation():
        for _ in range(3):
            assert play(model, schedule(STEPS), lambda _: 2, cond) == [WORD] * 2


@pytest.mark.parametrize("per_part", [False, True])
def test_a_time_that_only_the_device_knows(cond, per_part):
    """Known again as the same tensor; where each part comes with another, nothing shows that there are any."""
    model = Model(Attribution(host_readable=lambda _: False))
    words = ["", ""]
    with Generation():
        for time in schedule(STEPS):
            for part in range(2):
                words[part] += model(latents(), time.clone() if per_part else time, cond)
    assert words == (["C...", "...."] if per_part else [WORD] * 2)


def test_a_tensor_of_the_device_that_is_written_over_is_another_time(cond):
    for inference in (False, True):
        model = Model(Attribution(host_readable=lambda _: False))
        with Generation(), torch.inference_mode(inference):
            time, word = torch.ones(1), ""
            for _ in range(STEPS):
                word += model(latents(), time.mul_(0.9), cond)
        assert word == WORD, inference


def test_calls_without_a_time_are_steps(attribution, cond):
    model = Model(attribution)
    with Generation():
        assert [model(latents(), None, cond) for _ in range(STEPS)] == list(WORD)


def test_one_step_only(model, cond):
    time = schedule(1)[0]
    with Generation():
        assert [model(latents(), time, cond) for _ in range(5)] == ["C"] * 5


def test_where_no_end_is_known_the_time_again_is_another_picture_which_the_next_step_follows(model, cond):
    assert play(model, schedule(STEPS), lambda _: 2, cond) == ["C...", "CCCC"]
    assert [len(record.steps) for record in model.records()] == [1, 2, 2, 2, 1]


def test_who_names_the_branch_is_believed(model):
    with Generation(), BranchContext("all"):
        assert play(model, schedule(STEPS), lambda _: 2, torch.ones(1)) == ["C...", "...."]


def test_one_call_per_step_that_somebody_has_promised(attribution, cond):
    model = Model(attribution, enable_separate_cfg=False)
    with Generation():
        assert play(model, schedule(STEPS), lambda _: 2, cond) == ["C...", "...."]


def test_text_states_that_are_made_anew(model):
    words = ["", ""]
    with Generation():
        for time in schedule(STEPS):
            for part in range(2):
                words[part] += model(latents(), time, torch.ones(1, 3))
    assert words == [WORD] * 2 and len(model.records()) == 2


def test_more_parts_than_contexts_are_computed(attribution, cond):
    model = Model(attribution, max_contexts=4)
    with Generation():
        assert play(model, schedule(STEPS), lambda _: 5, cond) == ["CCCC"] * 5
        assert model.live() == 4


def test_a_time_per_token_says_less_than_a_place_in_the_schedule():
    times = torch.linspace(1, 0, 5)
    tokens, place, single = torch.rand(2, 7), times[1].expand(2), torch.rand(2)
    assert telling([tokens, single, place]) is place
    assert telling([single, place]) is single
    assert telling([tokens, single]) is tokens
    assert telling([torch.rand(2, 1), place]).shape == (2, 1)
    assert telling([]) is None


def test_tokens_of_a_part_at_their_own_times(attribution, cond):
    model = Model(attribution, roles=replace(ROLES, timestep=(3, 5), other=()))
    words, places = ["", ""], views(STEPS)
    with Generation():
        for time in places:
            model.mask = time.expand(1)
            for part in range(2):
                words[part] += model(latents(), torch.rand(1, 6), cond)
    assert words == [WORD] * 2
