"""Conditioning that is made anew for every call: the same branch as long as its values are the same, in a known run."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fxcache.runtime.attribution import Attribution, Mode
from fxcache.runtime.generation import Branch, Generation
from fxcache.runtime.rebuilt import PATIENCE
from fxcache.runtime.signals import _cache_context
from tests.runtime.loop import ROLES, Model, latents, schedule

STEPS = 5
WORD = "C...."


def run(model: Model, *texts: Callable[[], torch.Tensor], differences: float = 0.0) -> list[str]:
    """A loop in which every call has conditioning of its own."""
    words = [""] * len(texts)
    for time in schedule(STEPS):
        x = latents()
        for branch, text in enumerate(texts):
            words[branch] += model(x, time, text(), differences)
    return words


def text(value: float) -> Callable[[], torch.Tensor]:
    return lambda: torch.full((1, 3), value)


def test_equal_values_are_one_branch(model):
    with Generation():
        assert run(model, text(1.0)) == [WORD]
    (record,) = model.records()
    assert [step.step for step in record.steps] == list(range(STEPS))


@pytest.mark.parametrize("branches", [2, 3, PATIENCE])
def test_branches_that_take_turns(model, branches):
    with Generation():
        assert run(model, *(text(float(branch)) for branch in range(branches))) == [WORD] * branches
    assert len(model.records()) == branches


def test_it_is_as_with_objects_that_live_on(attribution):
    known, rebuilt = (
        Model(attribution, max_continuous_cached_steps=2),
        Model(attribution, max_continuous_cached_steps=2),
    )
    kept = [torch.zeros(1, 3), torch.ones(1, 3)]
    with Generation():
        expected = run(known, lambda: kept[0], lambda: kept[1])
    with Generation():
        assert run(rebuilt, text(0.0), text(1.0)) == expected == ["C..C."] * 2


def test_a_branch_that_ends_early_and_one_that_begins_late(model):
    times = schedule(6)
    words = dict.fromkeys((0.0, 1.0, 2.0), "")
    with Generation():
        for step, time in enumerate(times):
            x = latents()
            for value in (0.0, 1.0) if step < 3 else (0.0, 2.0):
                words[value] += model(x, time, text(value)())
    assert list(words.values()) == ["C.....", "C..", "C.."]


def test_other_values_are_other_branches_and_do_not_pile_up(model):
    with Generation():
        for number, time in enumerate(schedule(20)):
            assert model(latents(), time, torch.full((1, 3), float(number))) == "C"
            assert model.live() <= PATIENCE + 1


def test_nothing_is_known_again_where_no_end_is_known(model):
    assert run(model, text(1.0)) == ["C" * STEPS]
    assert model.live() == 0


def test_another_run_with_equal_values_has_its_own(model):
    first, second = Generation(), Generation()
    words = {first: "", second: ""}
    for time in schedule(STEPS):
        for request in (first, second):
            with request:
                words[request] += model(latents(), time, text(1.0)())
    assert list(words.values()) == [WORD] * 2 and len(model.records()) == 2


def test_objects_that_live_are_told_apart_whatever_their_values(model):
    two = torch.ones(1, 3), torch.ones(1, 3)
    with Generation():
        assert run(model, lambda: two[0], lambda: two[1]) == [WORD] * 2
    assert len(model.records()) == 2


def test_a_name_and_a_size_still_count(model):
    def named(name: str, c: torch.Tensor, x: torch.Tensor, time: torch.Tensor) -> str:
        token = _cache_context.set(Branch(name))
        try:
            return model(x, time, c)
        finally:
            _cache_context.reset(token)

    words = {"cond": "", "uncond": "", "longer": ""}
    with Generation():
        for time in schedule(STEPS):
            x = latents()
            words["cond"] += named("cond", torch.ones(1, 3), x, time)
            words["uncond"] += named("uncond", torch.ones(1, 3), x, time)
            words["longer"] += named("cond", torch.ones(1, 4), x, time)
    assert set(words.values()) == {WORD}


@pytest.mark.parametrize("inference", [False, True])
def test_a_buffer_that_is_written_over_keeps_no_old_values(model, inference):
    """Both branches come through one buffer, as views that are new in every call."""
    with Generation(), torch.inference_mode(inference):
        buffer = torch.zeros(2, 3)

        def through(value: float) -> Callable[[], torch.Tensor]:
            return lambda: buffer.fill_(value)[:1]

        words = run(model, through(0.0), through(1.0))
    # where writes are counted, what is kept is known to be spoilt; where they are not, it is a copy
    assert words == ([WORD] * 2 if inference else ["C" * STEPS] * 2)


def test_not_a_number_is_equal_to_nothing(model):
    with Generation():
        assert run(model, text(float("nan"))) == ["C" * STEPS]


class Wrapped(torch.Tensor):
    """A subclass may not know how to compare."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        assert func is not torch.equal
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize(
    "made",
    [lambda: torch.ones(1, 3).as_subclass(Wrapped), lambda: torch.ones(1, 3).to_sparse()],
    ids=["subclass", "sparse"],
)
def test_what_cannot_be_compared_is_new_in_every_call(model, made):
    with Generation():
        assert run(model, made) == ["C" * STEPS]
        assert run(model, text(1.0), made) == [WORD, "C" * STEPS]


def test_what_is_kept_goes_with_the_run(model):
    def kept() -> int:
        gc.collect()
        return sum(type(each) is torch.Tensor and each.shape == (1, 17) for each in gc.get_objects())

    generation = Generation()
    with generation:
        assert run(model, lambda: torch.ones(1, 17)) == [WORD]
        assert model.live() == 1 and kept() == 1
    generation.close()
    assert model.live() == 0 and kept() == 0


def test_it_goes_with_the_model(attribution: Attribution):
    model = Model(attribution)
    with Generation():
        run(model, text(1.0))
        del model
        gc.collect()
        assert attribution.records() == []


@pytest.mark.parametrize("on_device", [False, True])
def test_a_led_branch_is_led_on(on_device):
    def play(*texts: Callable[[], torch.Tensor]) -> tuple[list[str], list[Mode]]:
        attribution = Attribution(host_readable=lambda _: not on_device)
        model = Model(attribution, cfg_diff_compute_separate=False, residual_diff_threshold=0.5)
        words, modes = [""] * 2, []
        with Generation():
            for time, far in zip(schedule(6), (0.0, 0.1, 2.0, 0.1, 2.0, 0.1), strict=True):
                x = latents()
                for branch, made in enumerate(texts):
                    lease = model.begin(x, time, made())
                    modes.append(lease.mode)
                    words[branch] += model.finish(lease, x, far if branch == 0 else 2.0)
        return words, modes

    kept = torch.zeros(1, 3), torch.ones(1, 3)
    expected = play(lambda: kept[0], lambda: kept[1])
    assert expected[0] == ["C.C.C."] * 2
    assert play(text(0.0), text(1.0)) == expected


def test_one_of_two_tensors_is_made_anew(attribution):
    model = Model(attribution, roles=replace(ROLES, conditioning=(4, 5), other=()))
    model.mask = torch.ones(1)  # lives on
    with Generation():
        assert run(model, text(1.0), text(2.0)) == [WORD] * 2
        model.mask = torch.ones(1)
        assert model(latents(), torch.tensor([0.01]), text(1.0)()) == "."
        model.mask = torch.zeros(1)
        assert model(latents(), torch.tensor([0.005]), text(1.0)()) == "C"
