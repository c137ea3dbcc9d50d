"""The calls of one step: who leads, who follows, and what tells them apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from fxcache.runtime.attribution import Attribution, Lease, Mode, Reason
from fxcache.runtime.generation import Branch, BranchContext, Generation
from fxcache.runtime.signals import _cache_context
from tests.runtime.loop import Model, latents, schedule

FAR, NEAR = 2.0, 0.1


@contextmanager
def named(name: str | None, step: int | None = None) -> Iterator[None]:
    """What a pipeline says about its call."""
    token = _cache_context.set(None if name is None else Branch(name, step))
    try:
        yield
    finally:
        _cache_context.reset(token)


def following(attribution: Attribution, **changes: object) -> Model:
    return Model(attribution, **{"cfg_diff_compute_separate": False, "residual_diff_threshold": 0.5, **changes})


class Steps:
    """A loop in which the difference of every call is told; keeps the leases."""

    def __init__(self, model: Model) -> None:
        self.model, self.leases = model, list[Lease]()

    def call(self, x: torch.Tensor, t: object, c: object, difference: float) -> str:
        self.leases.append(self.model.begin(x, t, c))
        return self.model.finish(self.leases[-1], x, difference)


def play(steps: Steps, differences: list[tuple[float, float]], *conditions: torch.Tensor, copies: bool = False) -> str:
    words = [""] * len(conditions)
    for time, pair in zip(schedule(len(differences)), differences, strict=True):
        x = latents()
        for branch, (condition, difference) in enumerate(zip(conditions, pair, strict=True)):
            words[branch] += steps.call(x.clone() if copies else x, time, condition, difference)
    return " ".join(words)


PAIRS = [(0.0, 0.0), (NEAR, FAR), (FAR, NEAR), (NEAR, NEAR), (FAR, FAR), (NEAR, FAR)]
"""Difference of the first and of the second branch, step by step."""


def test_every_branch_decides_for_itself_by_default(attribution, cond, uncond):
    steps = Steps(Model(attribution, residual_diff_threshold=0.5))
    assert play(steps, PAIRS, cond, uncond) == "C.C.C. CC..CC"


def test_the_second_branch_follows_the_first_without_looking_at_the_device(attribution, cond, uncond):
    steps = Steps(following(attribution))
    assert play(steps, PAIRS, cond, uncond) == "C.C.C. C.C.C."
    led = steps.leases[3::2]
    assert [lease.mode for lease in led] == [Mode.REUSE, Mode.COMPUTE, Mode.REUSE, Mode.COMPUTE, Mode.REUSE]
    assert {lease.reason for lease in led} == {Reason.FOLLOWS}
    first, second = steps.model.records()
    assert first.reasons == {Reason.WARMUP: 1, Reason.REUSED: 3, Reason.DIFFERENCE: 2}
    assert second.reasons == {Reason.WARMUP: 1, Reason.REUSED: 3, Reason.FOLLOWS: 2}


def test_the_third_branch_follows_the_first_and_not_the_second(attribution, cond, uncond):
    model, third = following(attribution), torch.full((1, 3), 2.0)
    words = [""] * 3
    for step, time in enumerate(schedule(4)):
        x = latents()
        words[0] += model(x, time, cond, NEAR)
        if step >= 2:  # without state, it computes where the first one reuses
            words[1] += model(x, time, uncond, FAR)
        words[2] += model(x, time, third, FAR)
    assert words == ["C...", "C.", "C..."]


def test_who_is_called_first_leads_whatever_its_name(attribution, cond):
    for first, second in (("cond", "uncond"), ("uncond", "cond")):
        model = following(attribution, cfg_compute_first=first == "uncond")
        words = {first: "", second: ""}
        with Generation():
            for time, pair in zip(schedule(len(PAIRS)), PAIRS, strict=True):
                x = latents()
                for name, difference in zip(words, pair, strict=True):
                    with named(name):
                        words[name] += model(x, time, cond, difference)
        assert set(words.values()) == {"C.C.C."}


def test_a_branch_without_state_computes_although_the_first_one_reuses(attribution, cond, uncond):
    model = following(attribution, max_warmup_steps=0)
    codes = ["", ""]
    for step, time in enumerate(schedule(5)):
        x = latents()
        codes[0] += model(x, time, cond)
        if step >= 2:
            codes[1] += model(x, time, uncond)
    assert codes == ["C....", "C.."]


def test_a_branch_alone_in_its_step_decides_by_itself(attribution, cond, uncond):
    model = following(attribution)
    codes = ["", ""]
    for step, time in enumerate(schedule(6)):
        x = latents()
        if step < 3:
            codes[0] += model(x, time, cond, NEAR)
        codes[1] += model(x, time, uncond, FAR if step % 2 else NEAR)
    assert codes == ["C..", "C..C.C"]


def test_warmup_and_limits_of_the_second_branch_hold(attribution, cond, uncond):
    model = following(attribution, max_continuous_cached_steps=2)
    codes = ["", ""]
    for step, time in enumerate(schedule(7)):
        x = latents()
        codes[0] += model(x, time, cond, NEAR)
        if step != 3:  # the first branch computes there, by its limit
            codes[1] += model(x, time, uncond, FAR)
    assert codes[0] == "C..C..C"
    assert codes[1] == "C..C.C"


def test_copies_of_the_latents_are_one_step_in_a_known_generation_only(attribution, cond, uncond):
    with Generation():
        assert play(Steps(following(attribution)), PAIRS, cond, uncond, copies=True) == "C.C.C. C.C.C."
    assert play(Steps(following(attribution)), PAIRS, cond, uncond, copies=True) == "C.C.C. CC..CC"


def test_the_same_step_index_is_one_step(attribution, cond, uncond):
    model, words = following(attribution), ["", ""]
    with Generation():
        for step, pair in enumerate(PAIRS):
            for branch, difference in enumerate(pair):
                with named(("cond", "uncond")[branch], step):
                    words[branch] += model(latents(), torch.tensor([float(branch)]), cond, difference)
    assert words == ["C.C.C."] * 2


@pytest.mark.parametrize("copies", [False, True])
def test_times_that_come_twice_are_two_steps(attribution, cond, uncond, copies):
    model, words = following(attribution), ["", ""]
    told = [(0.0, 0.0), (NEAR, FAR), (FAR, NEAR), (NEAR, FAR), (NEAR, FAR)]
    with Generation():  # a scheduler of second order
        for value, pair in zip((999.0, 749.0, 749.0, 499.0, 499.0), told, strict=True):
            x = latents()
            for branch, condition in enumerate((cond, uncond)):
                time = torch.tensor([value])
                words[branch] += model(x.clone() if copies else x, time, condition, pair[branch])
    # what only its time shows to be of one step decides for itself where the time comes again
    assert words == (["C.C..", "C...C"] if copies else ["C.C..", "C.C.."])


def test_of_another_size_is_another_step(attribution, cond):
    model, words = following(attribution), ["", ""]
    with Generation():
        for time, pair in zip(schedule(len(PAIRS)), PAIRS, strict=True):
            for branch, size in enumerate((1, 2)):
                words[branch] += model(latents(size), time, cond, pair[branch])
    assert words == ["C.C.C.", "CC..CC"]


def test_called_twice_in_a_step_a_branch_follows_once(attribution):
    model, words = following(attribution), ["", ""]
    with Generation():
        for time in schedule(4):
            x = latents()
            for branch, differences in enumerate([[NEAR], [FAR, FAR]]):
                for difference in differences:
                    with BranchContext(str(branch)):
                        words[branch] += model(x, time, None, difference)
    assert words == ["C...", "CC.C.C.C"]


def test_a_call_that_is_still_running_does_not_lead(attribution, cond, uncond):
    model, times = following(attribution), schedule(4)
    assert model.run(times[:3], cond, uncond, difference=NEAR) == "C.. C.."
    x = latents()
    running = model.begin(x, times[3], cond)
    second = model.begin(x, times[3], uncond)
    assert second.mode is Mode.DECIDE
    assert model.finish(second, x, FAR) == "C" and model.finish(running, x, NEAR) == "."


def test_requests_that_take_turns_do_not_lead_each_other(attribution):
    model = following(attribution)
    prompts = [torch.ones(1, 3), torch.zeros(1, 3)]
    words = ["", ""]
    requests = [Generation(), Generation()]
    for time, pair in zip(schedule(len(PAIRS)), PAIRS, strict=True):
        for request in range(2):
            with requests[request]:
                words[request] += model(latents(), time, prompts[request], pair[request])
    assert words == ["C.C.C.", "CC..CC"]


def test_latents_without_a_version_are_a_step_only_with_a_time(attribution, cond, uncond):
    with torch.inference_mode():
        x, words = torch.ones(1, 4), ["", ""]
        model = following(attribution)
        for time, pair in zip(schedule(len(PAIRS)), PAIRS, strict=True):
            x.add_(1)
            for branch, condition in enumerate((cond, uncond)):
                words[branch] += model(x, time, condition, pair[branch])
        assert words == ["C.C.C."] * 2
        blind = following(Attribution(host_readable=lambda _: False))
        words = ["", ""]
        for time, pair in zip(schedule(len(PAIRS)), PAIRS, strict=True):
            x.add_(1)
            for branch, condition in enumerate((cond, uncond)):
                words[branch] += blind(x, time, condition, pair[branch])
        assert words == ["C.C.C.", "CC..CC"]


def test_a_clock_that_only_the_device_reads_is_not_read_by_who_follows(cond, uncond):
    steps = Steps(following(Attribution(host_readable=lambda _: False)))
    assert play(steps, PAIRS, cond, uncond) == "C.C.C. C.C.C."
    assert all(lease.clock is None for lease in steps.leases[1::2])
    assert any(lease.clock is not None for lease in steps.leases[::2])


def test_who_follows_begins_again_with_who_leads(cond, uncond):
    model = following(Attribution(host_readable=lambda _: False), calibrator="taylorseer", max_warmup_steps=1)
    steps = Steps(model)
    near = [(NEAR, NEAR)] * 4
    assert play(steps, near, cond, uncond) == "C... C..."
    assert play(steps, near, cond, uncond) == "r... C..."
    assert [len(lease.stored) for lease in steps.leases[9::2]] == [0, 1, 1, 1], "nothing of the image before"


@pytest.mark.parametrize(("later", "word"), [((0.7, 0.6), "C.."), ((1.0, 0.9), "C.r")])
def test_at_a_first_meeting_the_device_looks_at_the_clock(cond, uncond, later, word):
    steps = Steps(following(Attribution(host_readable=lambda _: False)))
    codes = ["", ""]
    with Generation():
        for value in (0.95, 0.9):
            codes[0] += steps.call(latents(), torch.tensor([value]), cond, NEAR)
        for value in (0.89, 0.8):
            codes[1] += steps.call(latents(), torch.tensor([value]), uncond, NEAR)
        for both, value in enumerate(later):  # the first of them alone
            x = latents()
            codes[0] += steps.call(x, torch.tensor([value]), cond, NEAR)
            if both:
                codes[1] += steps.call(x, torch.tensor([value]), uncond, FAR)
    assert codes[1] == word, "what it holds may be of the generation before"
    assert steps.leases[-1].clock is not None and steps.leases[-1].mode is Mode.DECIDE


@pytest.mark.parametrize("first", [False, True])
def test_calls_that_nothing_tells_apart_are_told_apart_by_their_order(attribution, cond, first):
    model = Model(attribution, enable_separate_cfg=True, cfg_compute_first=first)
    assert model.run(schedule(5), cond, cond) == "C.... C...."
    assert [record.branch for record in model.records()] == (["uncond", "cond"] if first else ["cond", "uncond"])
    by_default = Model(attribution)
    assert by_default.run(schedule(5), cond, cond) == "C.... xxxxx"


def test_by_order_the_second_call_may_be_left_out(attribution, cond):
    model, codes = Model(attribution, enable_separate_cfg=True), ["", ""]
    for step, time in enumerate(schedule(6)):
        x = latents()
        codes[0] += model(x, time, cond)
        if step not in (2, 3):
            codes[1] += model(x, time, cond)
    assert codes == ["C.....", "C..."]
    assert [[step.step for step in record.steps] for record in model.records()] == [list(range(6)), list(range(4))]


def test_by_order_every_call_has_state_of_its_own(attribution, cond):
    model = Model(attribution, enable_separate_cfg=True)
    held: list[list[int]] = [[], []]
    for time in schedule(4):
        x = latents()
        for branch in range(2):
            lease = model.begin(x, time, cond)
            held[branch].append(id(lease.ticket.context))  # type: ignore[attr-defined]
            model.finish(lease, x)
    assert all(len(set(ids)) == 1 for ids in held) and held[0][0] != held[1][0]


def test_by_order_the_second_call_follows_too(attribution, cond):
    steps = Steps(following(attribution, enable_separate_cfg=True))
    assert play(steps, PAIRS, cond, cond) == "C.C.C. C.C.C."


def new_prompt() -> torch.Tensor:
    return torch.randn(1, 3)


def test_new_conditioning_in_every_call_is_one_branch_if_there_is_only_one(attribution):
    by_default, one = Model(attribution), Model(attribution, enable_separate_cfg=False)
    with Generation():
        assert "".join(by_default(latents(), time, new_prompt()) for time in schedule(5)) == "CCCCC"
    with Generation():
        assert "".join(one(latents(), time, new_prompt()) for time in schedule(5)) == "C...."


def test_but_not_outside_of_a_known_generation(attribution):
    one = Model(attribution, enable_separate_cfg=False)
    times = schedule(6)
    first, second = new_prompt(), new_prompt()
    assert one.run(times[:3], first) == "C.."
    assert one.run(times[3:], second) == "C..", "another picture, of which the time goes on downwards"


def test_and_not_where_only_the_device_knows_the_time():
    one = Model(Attribution(host_readable=lambda _: False), enable_separate_cfg=False)
    cond, uncond = new_prompt(), new_prompt()
    with Generation():
        assert one.run(schedule(4), cond, uncond) == "C... C..."


@pytest.mark.parametrize("copies", [False, True])
def test_two_branches_in_spite_of_the_option_never_share_state(attribution, cond, uncond, copies):
    model = Model(attribution, enable_separate_cfg=False)
    with Generation():
        assert play(Steps(model), [(0.0, 0.0)] * 4, cond, uncond, copies=copies) == "C... xxxx"
        assert model(latents(), torch.tensor([0.05]), uncond) == "x", "alone in its step it is still the other one"
        assert model(latents(), torch.tensor([0.04]), cond) == "."
    (record,) = model.records()
    assert record.reasons[Reason.OTHER_CONDITIONING] == 5


def test_names_tell_branches_apart_in_spite_of_the_option(attribution, cond, uncond):
    model, words = Model(attribution, enable_separate_cfg=False), {"cond": "", "uncond": ""}
    with Generation():
        for time in schedule(4):
            x = latents()
            for name, condition in (("cond", cond), ("uncond", uncond)):
                with named(name):
                    words[name] += model(x, time, condition)
    assert words == {"cond": "C...", "uncond": "C..."}


def test_batched_branches_are_one_context_with_one_decision(attribution):
    model, both = following(attribution), torch.ones(2, 3)
    with Generation():
        assert "".join(model(latents(2), time, both) for time in schedule(4)) == "C..."
    assert len(model.records()) == 1
