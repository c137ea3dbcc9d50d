"""A panorama: in every step the model is called for overlapping windows, which are blended. Each has its own state."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import fxcache
from tests.integration.eager import EagerF1B0
from tests.models import transformers as T
from tests.models.wide import WIDE

STEPS, LAYERS, WIDTH, STARTS = 6, 4, 12, (0, 6, 12)


@torch.no_grad()
def panorama(model: nn.Module, views: bool) -> Tensor:
    """What somebody writes who paints a wide picture with one prompt."""
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 8, STARTS[-1] + WIDTH, generator=draw)
    text = {
        "encoder_hidden_states": torch.randn(1, 9, 24, generator=draw),
        "pooled_projections": torch.randn(1, 40, generator=draw),
    }
    times = torch.linspace(1000, 200, STEPS)
    for step in range(STEPS):
        time = times[step].expand(1) if views else times[step : step + 1].clone()
        flow, count = torch.zeros_like(latents), torch.zeros_like(latents)
        for start in STARTS:
            window = slice(start, start + WIDTH)
            flow[..., window] += model(hidden_states=latents[..., window], timestep=time, return_dict=False, **text)[0]
            count[..., window] += 1
        latents = latents - flow / count / STEPS
    return latents


def splitting(oracle: EagerF1B0, model: nn.Module) -> float:
    """A threshold that lets some windows of some steps be reused, far from every difference."""
    panorama(model, True)
    seen = sorted(d for memory in oracle.memories for d in memory.differences if d is not None)
    gaps = [(after - before, (after + before) / 2) for before, after in itertools.pairwise(seen)]
    return max(gaps[len(gaps) // 4 : -len(gaps) // 4])[1]


@pytest.mark.parametrize("views", [True, False], ids=["places", "values"])
def test_windows_do_not_read_each_other(views):
    eager = T.sd3(LAYERS).module
    oracle = EagerF1B0(eager, "sd3", float("inf"), branches=len(STARTS))
    threshold = splitting(oracle, eager)
    for _ in range(4):
        oracle.threshold = threshold
        oracle.begin()
        expected = panorama(eager, views)
        differences = sorted(d for memory in oracle.memories for d in memory.differences if d is not None)
        if all(abs(d - threshold) > 1e-3 * threshold for d in differences):
            break
        threshold *= 1.01
    words = oracle.decisions
    assert len(set(words)) > 1 and "." in "".join(words) and "C" in "".join(word[1:] for word in words)

    model = T.sd3(LAYERS).module
    fxcache.enable_cache(
        model, Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=threshold, inner_backend="eager"
    )
    with fxcache.generation():
        out = panorama(model, views)
    contexts = fxcache.summary(model).contexts
    assert [context.decisions for context in contexts] == words
    torch.testing.assert_close(out, expected, atol=2e-4, rtol=2e-4)


def test_a_mask_is_followed_by_every_window():
    model = T.sd3(LAYERS).module
    fxcache.enable_cache(
        model, Fn_compute_blocks=1, steps_computation_mask="110100", steps_computation_policy="static",
        max_warmup_steps=0, inner_backend="eager",
    )  # fmt: skip
    with fxcache.generation():
        panorama(model, True)
    assert [context.decisions for context in fxcache.summary(model).contexts] == ["CC.C.."] * len(STARTS)


def test_parts_of_a_video_whose_tokens_have_times_of_their_own():
    """As in keyframe pipelines of LTX-2: a noise level per token, the place in the schedule in another argument."""
    tiny = WIDE["ltx2"](3)
    model = fxcache.enable_cache(
        tiny.module, Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=1.0, inner_backend="eager"
    )
    times = torch.linspace(1000, 200, STEPS)
    with torch.no_grad(), fxcache.generation():
        for step in range(STEPS):
            place = times[step].expand(1)
            for part in range(2):
                given = tiny.vary(tiny.inputs(step), amount=0.5, seed=part)
                held = torch.rand(1, given["hidden_states"].shape[1])
                model(**{**given, "timestep": place[:, None] * (1 - held), "audio_timestep": place, "sigma": place})
    assert [context.decisions for context in fxcache.summary(model).contexts] == ["C....."] * 2
