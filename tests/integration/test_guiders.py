"""Guiders that change the model for one call of each step: that call has a graph and a state of its own."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import pytest
import torch
from torch._dynamo.utils import counters

import fxcache.api as api
from fxcache.errors import RefusalWarning
from tests.integration.cases import Case, Turn
from tests.integration.eager import BLOCKS, DOUBLE_SINGLE, PICTURE_FIRST, Blocks
from tests.integration.examine import (
    Examined,
    decisions_are_those_of_the_eager_cache,
    never_reused_is_plain,
    run,
    words,
)
from tests.models.pipelines_guided import (
    hunyuan_image_perturbed,
    hunyuan_image_skipped_layers,
    qwen_modular_skipped_layers,
)
from tests.slow import some_slow

STEPS = 5
"""Each skipping call is compiled anew: few enough for Dynamo's limit of eight."""
COND, UNCOND, SKIP = "pred_cond", "pred_uncond", "pred_cond_skip"


def turns(steps: int) -> Iterable[Turn]:
    """The guiders begin after the first step."""
    for step in range(steps):
        yield from ((0, name) for name in (COND, UNCOND, *([SKIP] if step else [])))


def case(build, blocks: Blocks) -> Case:
    return Case(build, "", blocks, turns, steps=STEPS, layers=4)


HUNYUAN = Blocks(DOUBLE_SINGLE, PICTURE_FIRST)
SKIPPING = {
    "a block, named calls": case(hunyuan_image_skipped_layers, HUNYUAN),
    "a part of a block, calls without names": case(qwen_modular_skipped_layers, BLOCKS["qwen"]),
}


@pytest.mark.parametrize("check", [never_reused_is_plain, decisions_are_those_of_the_eager_cache])
@pytest.mark.parametrize("name", some_slow(SKIPPING, ["a part of a block, calls without names"]))
def test_a_call_without_some_layers(name, check):
    check(Examined(SKIPPING[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", SKIPPING)
def test_it_is_compiled_as_often_as_without_fxcache(name):
    graphs = []
    for cached in (False, True):
        torch._dynamo.reset()
        counters.clear()
        tiny = SKIPPING[name].make()
        if cached:
            api.enable_cache(tiny.pipe, Fn_compute_blocks=1, residual_diff_threshold=1.0, inner_backend="eager")
        else:
            tiny.transformer.compile(backend="eager")
        run(tiny, steps=STEPS, cfg=True)
        graphs.append(counters["stats"]["unique_graphs"])
    plain, cached = graphs
    assert cached <= plain


def test_a_call_that_cannot_be_traced_is_refused_once():
    """Dynamo gives the model up with the first such call: what comes behind runs as it would without fxcache."""
    perturbed = case(hunyuan_image_perturbed, HUNYUAN)
    expected = run(perturbed.make(), steps=STEPS, cfg=True)
    tiny = perturbed.make()
    options = {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "inner_backend": "eager"}
    api.enable_cache(tiny.pipe, residual_diff_threshold=1e-6, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(run(tiny, steps=STEPS, cfg=True), expected)
    said = [str(warning.message) for warning in caught if issubclass(warning.category, RefusalWarning)]
    assert len(said) == 1 and "graph breaks cut the model" in said[0] and "super()" in said[0]
    assert [word[2:4] for word in words(tiny)] == [(COND, "CC"), (UNCOND, "CC")]
