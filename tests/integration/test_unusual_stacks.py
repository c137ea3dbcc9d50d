"""Blocks that take turns, hold blocks, run twice, backwards or not at all: computed as plain, reused right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fxcache.api as api
from fxcache.options import Options
from fxcache.runtime.attribution import attribution
from tests.models.unusual import (
    WALKS,
    Again,
    Backwards,
    Cycled,
    Interleaved,
    Nested,
    NestedOnce,
    Steps,
    ThereAndBack,
    Tied,
    Twice,
    Walk,
    seeded,
)
from tests.oracle import EagerDBCache, Label
from tests.refusals import refusals

OPTIONS: dict[str, Any] = {
    "max_warmup_steps": 1,
    "residual_diff_threshold": 0.99,
    "inner_backend": "eager",
    "on_refusal": "raise",
}
TRUNKS: dict[type[Walk], str] = {
    Interleaved: "blocks[4]",
    Nested: "blocks[4]",
    NestedOnce: "blocks.0.parts[3] + blocks.1.parts[3]",
    Twice: "blocks[8]",
    Backwards: "blocks[4]",
    ThereAndBack: "blocks[7]",
    Cycled: "blocks[6]",
    Tied: "blocks[4]",
    Again: "only[5]",
}
"""What is found: every call of a block counts, and blocks of another list that run in between belong to the middle."""
SPLITS = ((1, 0), (1, 1), (2, 1))
FULL, SHORT = (), (1,)
Call = tuple[Tensor, Tensor, Tensor]


def calls(steps: int = 5, drift: float = 0.02, seed: int = 0) -> list[Call]:
    generator = torch.Generator().manual_seed(seed)
    x, change, words = (torch.randn(1, length, 16, generator=generator) for length in (6, 6, 3))
    return [(x + drift * step * change, torch.tensor([1 - 0.1 * step]), words) for step in range(steps)]


def cached(cls: type[Walk], split: tuple[int, int] = (1, 0), **more: Any) -> Walk:
    first, last = split
    options = {**OPTIONS, "Fn_compute_blocks": first, "Bn_compute_blocks": last, **more}
    return api.enable_cache(seeded(cls), **options)


def plain(cls: type[Walk], given: list[Call], *more: Any) -> list[Tensor]:
    model = seeded(cls)
    return [model(*call, *more) for call in given]


def by_the_oracle(steps: Steps, split: tuple[int, int], given: list[Call]) -> tuple[list[Tensor], str]:
    first, last = split
    oracle = EagerDBCache(
        steps,  # type: ignore[arg-type]
        Options.from_mapping({**OPTIONS, "Fn_compute_blocks": first, "Bn_compute_blocks": last}),
    )
    found = [oracle.call(Label("one", "only"), *call) for call in given]
    return [out for out, _ in found], "".join("." if decision.reused else "C" for _, decision in found)


def run(model: Walk, given: list[Call], *more: Any) -> list[Tensor]:
    with api.generation():
        return [model(*call, *more) for call in given]


def decisions(model: Walk) -> list[str]:
    return [context.decisions for context in api.summary(model).contexts]


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def test_every_walk_has_an_expectation():
    assert set(TRUNKS) == set(WALKS)


@pytest.mark.parametrize("cls", WALKS)
def test_never_reused_it_is_the_plain_model(cls):
    model = cached(cls, max_warmup_steps=99)
    assert all(map(torch.equal, run(model, calls()), plain(cls, calls())))
    assert decisions(model) == ["CCCCC"]
    (record,) = attribution.records(tuple(model.parameters()))
    assert record.trunk == TRUNKS[cls]


@pytest.mark.parametrize("cls", WALKS)
def test_an_identical_call_reuses_what_it_would_compute(cls):
    model = cached(cls)
    call = calls(1)[0]
    with api.generation():
        outs = []
        for step in range(3):
            with api.context("only", step_index=step):
                outs.append(model(*call))
    assert decisions(model) == ["C.."]
    for out in outs:
        torch.testing.assert_close(out, plain(cls, [call])[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("cls", WALKS)
def test_a_moved_input_is_reused_as_by_the_eager_cache(cls, split):
    model = cached(cls, split)
    outs = run(model, calls())
    steps = Steps(seeded(cls), together=2 if cls is Interleaved else 1, parts=cls is NestedOnce)
    known, word = by_the_oracle(steps, split, calls())
    assert decisions(model) == [word] == ["C...."]
    torch.testing.assert_close(outs, known, rtol=1e-5, atol=1e-5)
    exact = plain(cls, calls())
    assert all(not torch.equal(out, wanted) for out, wanted in zip(outs[1:], exact[1:], strict=True))


@pytest.mark.parametrize("left_out", [(1,), (0,), (3,)])
def test_blocks_left_out_on_some_calls(left_out):
    """As guidance that skips layers does: one more call per step, of fewer blocks, in the first steps."""
    model = cached(Walk)
    given = calls()
    outs: dict[tuple[int, ...], list[Tensor]] = {(): [], left_out: []}
    with api.generation():
        for step, call in enumerate(given):
            for which in ((), left_out) if step < 3 else ((),):
                outs[which].append(model(*call, which))
    for which, found in outs.items():
        known, _ = by_the_oracle(Steps(seeded(Walk), left_out=which), (1, 0), given[: len(found)])
        torch.testing.assert_close(found, known, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("left_out", [(1,), (0,), (3,)])
def test_a_walk_of_other_blocks_reads_nothing_of_the_full_one(left_out):
    """The same inputs, once with all blocks and once without some: each the first call of its own."""
    model = cached(Walk)
    (call,) = calls(1)
    with api.generation():
        for which in ((), left_out, (), left_out):
            assert torch.equal(model(*call, which), plain(Walk, [call], which)[0])


def test_calls_with_too_few_blocks_are_computed_with_one_warning():
    model = cached(Walk, on_refusal="warn")
    with refusals() as said, api.generation():
        for call in calls():
            model(*call)
            assert torch.equal(model(*call, (0, 2)), plain(Walk, [call], (0, 2))[0])
    (sentence,) = said
    assert "blocks[2]: fewer than 3 blocks" in sentence
    assert decisions(model) == ["C...."]
