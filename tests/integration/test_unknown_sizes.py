"""Text of a length that depends on data: what is stored of it is made once the length is known, and never mixed up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import fxcache.api as api
from fxcache.options import Options
from tests.models.scattered import MaskedText
from tests.oracle import EagerDBCache, Label
from tests.refusals import refusals

OPTIONS: dict[str, Any] = {
    "Fn_compute_blocks": 1,
    "max_warmup_steps": 1,
    "residual_diff_threshold": 0.15,
    "inner_backend": "eager",
    "on_refusal": "raise",
}


def text(words: int, seed: int = 1, length: int = 7) -> Tensor:
    """A text of which so many words are read."""
    made = torch.randn(1, length, 16, generator=torch.Generator().manual_seed(seed))
    made[:, :words, 0], made[:, words:, 0] = 1, -1
    return made


def model(blocks: int = 4) -> MaskedText:
    torch.manual_seed(0)
    return MaskedText(blocks=blocks).eval().requires_grad_(False)


def step(index: int) -> tuple[Tensor, Tensor]:
    noise = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(5))
    return noise + 0.02 * index, torch.tensor([1 - 0.1 * index])


def decisions(module: object) -> list[str]:
    return [context.decisions for context in api.summary(module).contexts]


@torch.no_grad()
def run(module: MaskedText, texts: list[Tensor]) -> list[Tensor]:
    """One generation in one branch, of which every step has its own text."""
    with api.generation():
        outs = []
        for index, words in enumerate(texts):
            with api.context("only", step_index=index):
                outs.append(module(*step(index), words))
    return outs


@torch.no_grad()
def expected(texts: list[Tensor], changes: tuple[int, ...] = (), **options: Any) -> tuple[list[Tensor], str]:
    """The same by the oracle: computed twice at the start and at each change, where the first is not stored."""
    rules = {key: value for key, value in {**OPTIONS, **options}.items() if key != "max_warmup_steps"}
    oracle = EagerDBCache(model(), Options.from_mapping({**rules, "max_warmup_steps": 2}))
    outs, word = [], ""
    for index, words in enumerate(texts):
        if index in changes:
            oracle.forget()
        out, decision = oracle.call(Label("one", "only"), *step(index), words)
        assert not decision.close
        outs.append(out)
        word += "." if decision.reused else "C"
    return outs, word


@pytest.mark.parametrize("last", [0, 1])
def test_a_length_that_only_the_graph_knows(last):
    module = api.enable_cache(model(), **OPTIONS, Bn_compute_blocks=last)
    counters.clear()
    for words in (4, 2):  # the second generation runs the code of the first
        texts = [text(words)] * 8
        outs = run(module, texts)
        # without last blocks nothing behind the middle reads the text, and nothing of unknown size is stored
        known, word = expected(texts, Bn_compute_blocks=last)
        assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
        if last:
            assert decisions(module)[-1] == word and "." in word and "C" in word[2:]
            torch.testing.assert_close(outs, known)
        else:
            assert decisions(module)[-1].startswith("C.")


@pytest.mark.parametrize("last", [0, 1])
def test_never_reused_it_is_the_plain_model(last):
    texts = [text(4), text(4), text(2), text(7), text(0), text(0), text(1)]
    with torch.no_grad():
        plain = [model()(*step(index), words) for index, words in enumerate(texts)]
    module = api.enable_cache(model(), **{**OPTIONS, "max_warmup_steps": 99}, Bn_compute_blocks=last)
    assert all(map(torch.equal, run(module, texts), plain))
    assert decisions(module) == ["C" * len(texts)]


def test_another_length_in_the_same_branch_is_computed():
    texts = [text(4)] * 4 + [text(3)] * 3 + [text(5)] + [text(4)] * 3
    module = api.enable_cache(model(), **{**OPTIONS, "residual_diff_threshold": 1.0}, Bn_compute_blocks=1)
    outs = run(module, texts)
    known, word = expected(texts, (4, 7, 8), residual_diff_threshold=1.0, Bn_compute_blocks=1)
    assert decisions(module) == [word] == ["CC..CC.CCC."]
    torch.testing.assert_close(outs, known)
    (context,) = api.summary(module).contexts
    assert context.reasons["a size that depends on data has changed"] == 2  # the third change met nothing to reuse


def test_a_forced_reuse_of_an_identical_call_is_the_call():
    module = api.enable_cache(model(), **{**OPTIONS, "residual_diff_threshold": 1.0}, Bn_compute_blocks=1)
    x, t = step(0)
    with torch.no_grad(), api.generation():
        outs = []
        for index in range(3):
            with api.context("only", step_index=index):
                outs.append(module(x, t, text(4)))
    assert decisions(module) == ["CC."]
    assert torch.equal(outs[0], outs[1])
    torch.testing.assert_close(outs[2], outs[1])


def test_branches_of_other_lengths_keep_their_own_state():
    module = api.enable_cache(model(), **OPTIONS, Bn_compute_blocks=1)
    branches = [text(4, 1), text(2, 2)]
    outs: list[list[Tensor]] = [[], []]
    with torch.no_grad(), api.generation():
        for index in range(6):
            for out, words in zip(outs, branches, strict=True):
                out.append(module(*step(index), words))
        held = [context.state_bytes for context in api.summary(module).contexts]
    assert held[0] > held[1] > 0
    for out, words in zip(outs, branches, strict=True):
        torch.testing.assert_close(out, expected([words] * 6, Bn_compute_blocks=1)[0])


@pytest.mark.parametrize(
    ("options", "at_fault"),
    [
        ({"method": "dbprune"}, "the size of a cached value depends on data"),
        ({"calibrator": "taylorseer", "calibrator_cache_type": "hidden_states"}, "the size of a cached value"),
    ],
)
def test_what_cannot_be_made_in_time_is_refused(options, at_fault):
    module = api.enable_cache(model(), **{**OPTIONS, "on_refusal": "warn", "Bn_compute_blocks": 1, **options})
    with refusals() as said, torch.no_grad():
        for index in range(3):
            assert torch.equal(module(*step(index), text(4)), model()(*step(index), text(4)))
    (sentence,) = said
    assert at_fault in sentence


@pytest.mark.parametrize("calibrator", ["regression", "dmd"])
def test_a_calibrator_starts_again_with_another_length(calibrator):
    texts = [text(4)] * 6 + [text(2)] * 4
    options = {**OPTIONS, "residual_diff_threshold": 1.0, "calibrator": calibrator, "max_warmup_steps": 4}
    outs = run(api.enable_cache(model(), **options, Bn_compute_blocks=1), texts)
    again = run(api.enable_cache(model(), **options, Bn_compute_blocks=1), texts[:6])
    assert all(map(torch.equal, outs[:6], again))
    assert all(out.isfinite().all() for out in outs)
    with torch.no_grad():
        plain = model()(*step(6), texts[6])
    assert torch.equal(outs[6], plain)


def test_inductor_makes_the_state_of_such_a_text_too():
    texts = [text(4)] * 4 + [text(3)] * 3
    options = {**OPTIONS, "residual_diff_threshold": 1.0, "Bn_compute_blocks": 1}
    module = api.enable_cache(model(blocks=3), **{**options, "inner_backend": "inductor"})
    by_operators = api.enable_cache(model(blocks=3), **options)
    torch.testing.assert_close(run(module, texts), run(by_operators, texts))
    assert decisions(module) == decisions(by_operators) == ["CC..CC."]
