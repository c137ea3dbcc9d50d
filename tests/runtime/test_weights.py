"""State and the weights it was computed with."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fxcache.runtime.attribution import Attribution, Outcome, Reason, TensorSpec
from fxcache.runtime.weights import note_write, stamp_of
from tests.runtime.loop import ROLES, Model, latents, schedule


def word(model: Model, cond: torch.Tensor, change_at: dict[int, object], steps: int = 8) -> str:
    codes = ""
    for step, time in enumerate(schedule(steps)):
        if step in change_at:
            change_at[step]()  # type: ignore[operator]
        codes += model(latents(), time, cond)
    return codes


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("warmup", [1, 2])
def test_a_write_begins_the_warmup_again(attribution, cond, which, warmup):
    model = Model(attribution, max_warmup_steps=warmup)

    def write() -> None:
        with torch.no_grad():
            model.parameters[which].add_(1)

    half = "C" * warmup + "." * (4 - warmup)
    assert word(model, cond, {4: write}) == half * 2
    (record,) = model.records()
    assert record.steps[4].reason is Reason.WEIGHTS and record.segment == 0, "it is no other generation"
    assert record.reasons[Reason.WEIGHTS] == 1


def test_a_write_during_the_warmup_drops_what_a_calibrator_has(attribution, cond):
    model = Model(attribution, max_warmup_steps=3, calibrator="taylorseer")
    times = schedule(4)
    model(latents(), times[0], cond)
    note_write([model.parameters[0]])
    model(latents(), times[1], cond)
    lease = model.begin(latents(), times[2], cond)
    assert [stored.step for stored in lease.stored] == [1]
    lease.state((TensorSpec((1,), torch.float32, torch.device("cpu")),))
    attribution.end(lease, Outcome())


def test_a_static_mask_does_not_reuse_other_weights(attribution, cond):
    model = Model(attribution, steps_computation_mask="10000000", steps_computation_policy="static")
    assert word(model, cond, {4: lambda: note_write(model.parameters)}) == "C...C..."


def test_the_other_models_are_left_alone(attribution, cond):
    first, second = Model(attribution), Model(attribution)
    codes = ["", ""]
    for step, time in enumerate(schedule(4)):
        if step == 2:
            note_write(first.parameters)
        codes = [codes[i] + model(latents(), time, cond) for i, model in enumerate((first, second))]
    assert codes == ["C.C.", "C..."]


def test_a_number_of_the_model(attribution, cond):
    model = Model(attribution, dataclasses.replace(ROLES, other=(), numbers=(5,)))
    codes = ""
    for step, time in enumerate(schedule(6)):
        model.mask = torch.tensor(0.5 if step < 3 else 0.7, dtype=torch.float64)  # made anew for every call
        codes += model(latents(), time, cond)
    assert codes == "C..C.."


def test_inference_tensors_have_no_version():
    plain = torch.zeros(2)
    with torch.inference_mode():
        made = torch.zeros(2)
    before = stamp_of((plain, made))
    note_write([plain, made])
    after = stamp_of((plain, made))
    assert before != after
    assert stamp_of((made,)) == stamp_of((made,))


def test_writes_in_any_mode_count():
    weight = torch.nn.Parameter(torch.zeros(2))
    stamps = [stamp_of((weight,))]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            weight.copy_(torch.ones(2))
        stamps.append(stamp_of((weight,)))
    assert len(set(stamps)) == 3 and stamp_of((weight,)) == stamps[-1]


def test_a_context_that_holds_nothing_has_nothing_to_lose(attribution: Attribution, cond):
    model = Model(attribution)
    note_write(model.parameters)
    assert word(model, cond, {}, steps=3) == "C.."
    assert Reason.WEIGHTS not in model.records()[0].reasons
