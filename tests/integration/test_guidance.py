"""Guidance in whole pipelines: who follows does what an eager cache that follows does, with its own state."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxcache
from fxcache.runtime.attribution import Mode, attribution
from tests.integration.eager import EagerF1B0, branches_of
from tests.integration.test_pipelines import TOLERANCE, build, cached, contexts
from tests.models.pipelines import TinyPipeline

STEPS = 6
SEPARATE = ["flux", "qwen", "wan", "hunyuan_video"]


class Following(EagerF1B0):
    """Every branch but the first does what the first one did in this step, if it has something to reuse."""

    def decide(self, indicator: torch.Tensor) -> None:
        place = self.calls % self.branches
        if place == 0:
            super().decide(indicator)
            return
        self.memory = memory = self.memories[place]
        self.calls += 1
        self.reuse = self.memories[0].decisions[-1] == "." and memory.reference is not None
        if not self.reuse:
            memory.reference = indicator
        memory.decisions += "." if self.reuse else "C"
        memory.differences.append(None)


def telling_threshold(name: str) -> float:
    """A threshold at which branches that decide for themselves disagree, or else one that splits the first one."""
    tiny = build(name)
    oracle = EagerF1B0(tiny.transformer, name, threshold=float("inf"), branches=2)
    tiny.run(steps=STEPS, cfg=True)
    first, second = (sorted(d for d in memory.differences if d is not None) for memory in oracle.memories)
    for candidate in [(a + b) / 2 for a, b in zip(first, second, strict=True)] + [first[2] * 1.01]:
        oracle.threshold = candidate
        oracle.begin()
        tiny.run(steps=STEPS, cfg=True)
        measured = [d for memory in oracle.memories for d in memory.differences if d is not None]
        clear = all(abs(d - candidate) > 1e-3 * candidate for d in measured)
        words = oracle.decisions
        if clear and words[0] != words[1] and "." in words[0] and "C" in words[0][1:]:
            return candidate
    raise AssertionError(f"no threshold at which the branches of {name} disagree: {first}, {second}")


@pytest.mark.parametrize("name", SEPARATE)
def test_decisions_and_output_are_those_of_an_eager_cache_that_follows(name, monkeypatch):
    threshold = telling_threshold(name)
    plain = build(name)
    oracle = Following(plain.transformer, name, threshold, branches=branches_of(plain))
    expected = plain.run(steps=STEPS, cfg=True)
    modes: list[Mode] = []
    begin = attribution.begin

    def noting(*args: Any) -> Any:
        lease = begin(*args)
        modes.append(lease.mode)
        return lease

    monkeypatch.setattr(attribution, "begin", noting)
    tiny = cached(build(name), threshold, fullgraph=True, cfg_diff_compute_separate=False)
    out = tiny.run(steps=STEPS, cfg=True)
    first, second = contexts(tiny)
    assert [first.decisions, second.decisions] == oracle.decisions
    assert first.decisions == second.decisions and {"C", "."} <= set(first.decisions[1:])
    assert second.differences == (None,) * STEPS, "nothing was compared"
    assert Mode.DECIDE not in modes[1::2], "and nothing was read from the device"
    assert second.reasons["follows the other branch"] == first.decisions[1:].count("C")
    torch.testing.assert_close(out, expected, **TOLERANCE)
    fxcache.refresh_context(tiny.pipe, cfg_diff_compute_separate=True)
    seen = len(contexts(tiny))
    tiny.run(steps=STEPS, cfg=True)
    apart = [context.decisions for context in contexts(tiny, seen)]
    assert apart[0] != apart[1], "otherwise this test would not tell"


@pytest.mark.parametrize("name", ["flux", pytest.param("qwen", marks=pytest.mark.slow)])
def test_who_follows_gets_the_same_in_every_generation(name):
    threshold = telling_threshold(name)

    def fresh() -> TinyPipeline:
        return cached(build(name), threshold, cfg_diff_compute_separate=False)

    used = fresh()
    for request in ({"cfg": True}, {"cfg": True, "prompt_seed": 5}, {"cfg": False}, {"cfg": True, "size": 1}):
        seen = len(contexts(used))
        alone = fresh()
        assert torch.equal(used.run(steps=STEPS, **request), alone.run(steps=STEPS, **request)), request
        assert [c.decisions for c in contexts(used, seen)] == [c.decisions for c in contexts(alone)], request


@pytest.mark.parametrize("name", ["dit", "sd3", "cogvideox"])
def test_batched_guidance_is_one_context_with_one_decision(name):
    tiny = cached(build(name), 0.99, cfg_diff_compute_separate=False, enable_separate_cfg=True)
    out = tiny.run(steps=4, cfg=True)
    plain = build(name)
    oracle = EagerF1B0(plain.transformer, name, 0.99)
    torch.testing.assert_close(out, plain.run(steps=4, cfg=True), **TOLERANCE)
    assert [context.decisions for context in contexts(tiny)] == oracle.decisions
    assert "." in oracle.decisions[0]


@pytest.mark.parametrize("separate", [None, True, False])
@pytest.mark.parametrize("name", ["flux", pytest.param("qwen", marks=pytest.mark.slow), "wan"])
def test_no_spelling_of_the_option_mixes_the_branches(name, separate):
    plain = build(name)
    oracle = EagerF1B0(plain.transformer, name, 0.99, branches=2)
    expected = plain.run(steps=4, cfg=True)
    tiny = cached(build(name), 0.99, enable_separate_cfg=separate)
    out = tiny.run(steps=4, cfg=True)
    assert [context.decisions for context in contexts(tiny)] == oracle.decisions == ["C..."] * 2
    torch.testing.assert_close(out, expected, **TOLERANCE)


def test_guidance_without_a_second_call_counts_every_call_as_a_step():
    for separate in (None, True, False):
        tiny = cached(build("wan"), 0.99, enable_separate_cfg=separate, max_warmup_steps=2)
        tiny.run(steps=STEPS, cfg=False)
        assert [context.decisions for context in contexts(tiny)] == ["CC...."]
