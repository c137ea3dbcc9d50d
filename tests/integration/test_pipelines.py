"""Whole pipelines: nothing reused is plain, decisions are those of an independent count, nothing old is ever read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import fxcache.api as api
from fxcache.summary import ContextSummary
from tests.integration.eager import EagerF1B0, branches_of, mixed_threshold
from tests.models.pipelines import PIPELINES, TinyPipeline
from tests.slow import some_slow

LAYERS, STEPS = 3, 6
TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}


class Broken(Exception):
    pass


def build(name: str) -> TinyPipeline:
    return PIPELINES[name](layers=LAYERS)


def cached(tiny: TinyPipeline, threshold: float = 0.99, **more: Any) -> TinyPipeline:
    options = {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "inner_backend": "eager", "on_refusal": "raise", **more}
    api.enable_cache(tiny.pipe, residual_diff_threshold=threshold, **options)
    return tiny


def numbers(differences: Iterable[float | None]) -> list[float]:
    return [math.nan if difference is None else difference for difference in differences]


def contexts(tiny: TinyPipeline, since: int = 0) -> list[ContextSummary]:
    return list(api.summary(tiny.pipe).contexts[since:])


@contextmanager
def breaking(tiny: TinyPipeline, step: int) -> Iterator[None]:
    """Let the scheduler raise at its `step`-th call, as a callback or an interrupt would."""
    scheduler, calls = tiny.pipe.scheduler, 0
    original = scheduler.step

    def raising(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            raise Broken
        return original(*args, **kwargs)

    scheduler.step = raising
    try:
        yield
    finally:
        del scheduler.step


@pytest.mark.parametrize("name", PIPELINES)
def test_never_reused_is_plain_bit_for_bit(name):
    plain = build(name).run(steps=STEPS, cfg=True)
    tiny = cached(build(name), max_warmup_steps=STEPS + 1)
    assert torch.equal(tiny.run(steps=STEPS, cfg=True), plain)
    found = contexts(tiny)
    assert [context.decisions for context in found] == ["C" * STEPS] * branches_of(tiny)
    assert all(context.reasons == {"warmup": STEPS} for context in found)
    cached(tiny, threshold=0.0)
    assert torch.equal(tiny.run(steps=STEPS, cfg=True), plain)
    assert api.summary(tiny.pipe).contexts == ()
    api.disable_cache(tiny.pipe)
    assert torch.equal(tiny.run(steps=STEPS, cfg=True), plain)


@pytest.mark.parametrize("name", PIPELINES)
def test_decisions_and_output_are_those_of_the_eager_cache(name):
    threshold = mixed_threshold(lambda: build(name), name, STEPS, cfg=True)
    plain = build(name)
    oracle = EagerF1B0(plain.transformer, name, threshold, branches=branches_of(plain))
    expected = plain.run(steps=STEPS, cfg=True)
    tiny = cached(build(name), threshold, fullgraph=True)
    out = tiny.run(steps=STEPS, cfg=True)
    found = contexts(tiny)
    assert [context.decisions for context in found] == oracle.decisions
    for context, memory in zip(found, oracle.memories, strict=True):
        assert numbers(context.differences) == pytest.approx(numbers(memory.differences), rel=1e-3, nan_ok=True)
        assert 0 < context.reused < STEPS - 1
    if tiny.separate:
        assert [context.branch for context in found] == list(tiny.context_names)
    torch.testing.assert_close(out, expected, **TOLERANCE)


# `test_supported` asks the same of every way to call a transformer
@pytest.mark.parametrize("name", some_slow(PIPELINES, PIPELINES.keys() - {"flux", "sd3", "dit"}))
def test_no_generation_reads_what_another_has_left(name):
    threshold = mixed_threshold(lambda: build(name), name, STEPS, cfg=True)

    def fresh() -> TinyPipeline:
        return cached(build(name), threshold)

    def alone(**request: Any) -> tuple[Tensor, list[str]]:
        tiny = fresh()
        out = tiny.run(**request)
        return out, [context.decisions for context in contexts(tiny)]

    first = {"steps": STEPS, "cfg": True}
    scenes: dict[str, dict[str, Any]] = {
        "same again": first,
        "another prompt": {**first, "prompt_seed": 5, "latent_seed": 1},
        "another size": {**first, "prompt_seed": 5, "size": 1},
        "fewer steps": {**first, "steps": 3},
        "without guidance": {**first, "cfg": False},
        "batch of two": {**first, "batch": 2},
    }
    used = fresh()
    used.run(**first)
    assert "." in contexts(used)[0].decisions
    for scene, request in scenes.items():
        seen, graphs = len(contexts(used)), counters["stats"]["unique_graphs"]
        expected, words = alone(**request)
        assert torch.equal(used.run(**request), expected), scene
        assert [context.decisions for context in contexts(used, seen)] == words, scene
        if scene in ("same again", "another prompt", "fewer steps"):
            assert counters["stats"]["unique_graphs"] == graphs, scene

    expected, words = alone(**first)
    for step in (1, 3):
        with pytest.raises(Broken), breaking(used, step):
            used.run(**first)
        seen = len(contexts(used))
        assert torch.equal(used.run(**first), expected), f"after an exception in step {step}"
        assert [context.decisions for context in contexts(used, seen)] == words
    used.run(steps=1, cfg=True)
    assert torch.equal(used.run(**first), expected), "after a single step"

    kept = used.inputs(**first)
    for latents in (3, 0):  # the same tensors, other noise
        generator = torch.Generator().manual_seed(latents)
        out = used.pipe(**{**kept, "generator": generator})[0]
        assert torch.equal(out, alone(**first, latent_seed=latents)[0]), "identical prompt tensors"
    used.run(steps=1, cfg=True)
    with pytest.raises(Broken), breaking(used, 1):
        used.pipe(**kept)
    assert torch.equal(used.pipe(**{**kept, "generator": torch.Generator().manual_seed(0)})[0], expected)
    assert api.summary(used.pipe).state_bytes == 0
