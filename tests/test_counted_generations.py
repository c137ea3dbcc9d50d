"""Where generations end, on a compiled model: every one gives, bit for bit, what it gives alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcache
from tests.models.tiny_trunk import tiny_trunk

COMMON: dict[str, Any] = {
    "Fn_compute_blocks": 1,
    "residual_diff_threshold": 0.99,
    "inner_backend": "eager",
    "on_refusal": "raise",
}


def cached(**options: Any) -> nn.Module:
    return fxcache.enable_cache(tiny_trunk(), **{**COMMON, **options})


def generation(model: nn.Module, steps: int = 8, prompt: int = 0) -> list[Tensor]:
    """Latents that change a little from step to step; the time falls from 1."""
    random = torch.Generator().manual_seed(prompt)
    x, text = (torch.randn(1, length, 16, generator=random) for length in (4, 3))
    drift = torch.randn(1, 4, 16, generator=random)
    with torch.no_grad():
        return [model(x + 0.05 * step * drift, torch.tensor([1 - 0.1 * step]), text) for step in range(steps)]


def words(model: nn.Module) -> list[str]:
    return [context.decisions for context in fxcache.summary(model).contexts]


def equal(values: list[Tensor], others: list[Tensor]) -> bool:
    return len(values) == len(others) and all(map(torch.equal, values, others))


@pytest.mark.parametrize(("warmup", "steps", "word"), [(1, 8, "C......."), (8, 12, "CCCCCCCC....")])
def test_d1_n_steps_are_n_steps(warmup, steps, word):
    model = cached(num_inference_steps=steps, max_warmup_steps=warmup)
    first, *others = [generation(model, steps) for _ in range(4)]
    assert words(model) == [word] * 4
    assert all(equal(other, first) for other in others)
    assert equal(generation(model, steps, prompt=7), generation(cached(max_warmup_steps=warmup), steps, prompt=7))


def test_d1_a_static_mask_begins_with_every_generation():
    options = {"steps_computation_mask": "11001001", "steps_computation_policy": "static"}
    model = cached(num_inference_steps=8, max_warmup_steps=0, **options)
    first, second = generation(model), generation(model)
    assert words(model) == ["CC..C..C"] * 2 and equal(first, second)


def test_d2_a_refresh_before_every_generation_is_possible_and_changes_nothing():
    model, untouched = cached(max_warmup_steps=1), cached(max_warmup_steps=1)
    for prompt in (0, 0, 3):
        fxcache.refresh_context(model, num_inference_steps=8)
        assert equal(generation(model, prompt=prompt), generation(untouched, prompt=prompt))
    assert words(model) == words(untouched) == ["C......."] * 3


def test_d3_the_number_of_steps_need_not_be_known():
    model = cached(max_warmup_steps=2)
    first, second, third = (generation(model, prompt=prompt) for prompt in (0, 0, 5))
    assert words(model) == ["CC......"] * 3
    assert equal(first, second) and equal(third, generation(cached(max_warmup_steps=2), prompt=5))


def test_d4_a_generation_that_is_broken_off_leaves_the_next_ones_alone():
    model = cached(num_inference_steps=8, max_warmup_steps=1)
    generation(model, steps=3)
    first, second = generation(model), generation(model)
    assert words(model) == ["C..", "C.......", "C......."]
    assert equal(first, second) and equal(first, generation(cached(max_warmup_steps=1)))


@pytest.mark.parametrize(("policy", "word"), [("once", "C..C...."), ("repeat", "C..C..C.")])
def test_d11_a_hint_and_a_number_of_steps_keep_the_generations_apart(policy, word):
    options = {"force_refresh_step_hint": 3, "force_refresh_step_policy": policy, "max_warmup_steps": 1}
    model = cached(num_inference_steps=8, **options)
    first, second, third = (generation(model) for _ in range(3))
    assert words(model) == [word] * 3
    assert equal(first, second) and equal(first, third)
    plain = generation(tiny_trunk())
    computed = [step for step, made in enumerate(word) if made == "C"]
    assert equal([first[step] for step in computed], [plain[step] for step in computed])
    assert not torch.equal(first[4], plain[4])
