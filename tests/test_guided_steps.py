"""Steps of which some branches are missing, on a compiled model: decisions and outputs are those of an eager cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fxcache.backend  # noqa: F401
from fxcache.api import generation, summary
from fxcache.options import Options
from fxcache.runtime.attribution import attribution
from tests.models.tiny_trunk import tiny_trunk
from tests.oracle import Decision, EagerDBCache, Label, Memory

BRANCHES = 3
STEP = st.lists(st.booleans(), min_size=BRANCHES, max_size=BRANCHES)
RULES: dict[str, dict[str, Any]] = {
    "warmup": {"max_warmup_steps": 2},
    "limits": {"max_warmup_steps": 1, "max_continuous_cached_steps": 2, "max_cached_steps": 4},
    "no warmup": {"max_warmup_steps": 0},
}


@dataclass
class EagerLed(EagerDBCache):
    """The same cache, for a call that is told what the first branch of its step has done."""

    led: bool | None = None

    def decide(self, memory: Memory, indicator: Tensor, seen: bool | None) -> Decision:
        own = super().decide(memory, indicator, seen)
        return own if self.led is None or own.difference is None else Decision(self.led)


@pytest.mark.parametrize("rules", RULES)
def test_branches_that_follow_may_be_missing_and_so_may_the_first(rules):
    chosen = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.12, "inner_backend": "eager", **RULES[rules]}
    options = Options(**chosen, cfg_diff_compute_separate=False, on_refusal="raise")
    model = tiny_trunk()
    compiled = torch.compile(model, backend="fxcache", fullgraph=True, options=options.to_dict())
    texts = [torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(BRANCHES)]
    counts = {"led to reuse": 0, "led to compute": 0, "alone": 0}

    @settings(max_examples=25)
    @given(st.lists(STEP, min_size=3, max_size=10), st.integers(0, 99), st.booleans())
    def play(steps: list[list[bool]], seed: int, copies: bool) -> None:
        attribution.forget()
        oracle = EagerLed(model, options)
        random = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 4, 16, generator=random)
        words, expected_words = [""] * BRANCHES, [""] * BRANCHES
        with torch.no_grad(), generation():
            for step, present in enumerate(steps):
                x = x + 0.06 * torch.randn(1, 4, 16, generator=random)
                time, oracle.led = torch.tensor([1 - 0.05 * step]), None
                for branch in range(BRANCHES):
                    if not present[branch]:
                        continue
                    out = compiled(x.clone() if copies else x, time, texts[branch])
                    expected, decision = oracle.call(Label(0, branch), x, time, texts[branch])
                    if decision.close:
                        return  # rounding may decide otherwise from here on
                    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
                    expected_words[branch] += "." if decision.reused else "C"
                    kind = "alone" if oracle.led is None else f"led to {'reuse' if decision.reused else 'compute'}"
                    counts[kind] += decision.difference is not None or oracle.led is not None
                    if oracle.led is None:
                        oracle.led = decision.reused
        for context in summary(model).contexts:
            words[int(context.branch.removeprefix("branch ")) - 1] = context.decisions
        assert sorted(words) == sorted(expected_words)

    play()
    assert min(counts.values()) >= 15, counts
    attribution.forget()
