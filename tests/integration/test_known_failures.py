"""Situations in which other step caches fail: an exception, another pipeline on the same transformer, and so on."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import diffusers as D
import pytest
import torch
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor
from torch._dynamo.utils import counters

import fxcache.api as api
from tests.integration.eager import EagerF1B0
from tests.integration.hooks import Broken, Turns, each_step, in_threads
from tests.integration.test_pipelines import build, cached, contexts
from tests.models.pipelines import flux, sd3
from tests.models.pipelines_image import lumina2_truncated, sd3_skipped_layers
from tests.models.tiny_pipeline import TinyPipeline, quiet
from tests.models.variants import flux_img2img, twin

FIRST: dict[str, Any] = {"steps": 6, "cfg": True}
OTHER: dict[str, Any] = {**FIRST, "prompt_seed": 5, "latent_seed": 1}


MODELS = {
    "test_another_prompt_after_an_exception_in_a_callback": "wan",
    "test_another_size_after_an_exception_in_a_callback": "flux",
    "test_two_requests_take_turns_on_one_transformer": "flux",
    "test_a_pipeline_that_names_no_branch": "flux",
    "test_guidance_with_default_settings_keeps_branches_apart": "flux",
    "test_another_pipeline_on_the_cached_transformer": "flux",
    "test_guidance_that_skips_layers_still_skips_them": "sd3 of five blocks",
    "test_pipelines_of_one_class_are_independent": "dit",
    "test_guidance_that_stops_in_the_middle": "lumina2",
    "test_a_generation_inside_another": "sd3",
}
"""Whose code a test compiles, where its parameters do not say so."""
_compiled: list[str] = []
"""The model whose compiled code is kept: all classes share the few graphs that Dynamo allows for one function."""


@pytest.fixture(autouse=True)
def _dynamo_forgets(request: pytest.FixtureRequest) -> Iterator[None]:
    """In place of the one for all tests: consecutive tests of one model share its compiled code."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    name = parameters.get("name") or MODELS[request.node.originalname]
    if _compiled[-1:] != [name]:
        torch._dynamo.reset()
        _compiled.append(name)
    yield


@pytest.fixture(scope="module", autouse=True)
def _dynamo_forgets_in_the_end() -> Iterator[None]:
    yield
    _compiled.clear()
    torch._dynamo.reset()


def words(tiny: TinyPipeline, since: int = 0) -> list[str]:
    return [context.decisions for context in contexts(tiny, since)]


def raise_at(step: int) -> Callable[..., Any]:
    def callback(pipe: Any, index: int, timestep: Any, kwargs: Any) -> Any:
        if index == step:
            raise Broken
        return kwargs

    return callback


@pytest.mark.parametrize("name", ["flux", "sd3", "wan"])
def test_one_graph_per_size_and_none_for_guidance(name):
    # F6 and C8: others cut the model into a graph per group of blocks, again for every size
    torch._dynamo.reset()
    counters.clear()
    tiny = cached(build(name))
    found = []
    for request in ({**FIRST, "cfg": False}, FIRST, {**FIRST, "size": 1}, {**FIRST, "size": 2}, FIRST):
        tiny.run(**request)
        found.append(counters["stats"]["unique_graphs"])
    batched = name == "sd3"  # guidance doubles its batch
    assert found == ([1, 2, 3, 3, 3] if batched else [1, 1, 2, 2, 2])
    assert not counters["graph_break"]


@pytest.mark.parametrize("name", ["sd3", "pixart", "dit"])
def test_models_without_the_mixin_for_caches(name):
    # F5: they have no `enable_cache`
    tiny = cached(build(name), threshold=1.0)
    assert not isinstance(tiny.transformer, CacheMixin)
    tiny.run(**FIRST)
    assert words(tiny) == ["C....."]


def test_pipelines_of_one_class_are_independent():
    # C4: the class was patched, and one call dropped the state of all
    before = dict(vars(D.DiTPipeline))
    first, second = cached(build("dit"), threshold=1.0), cached(build("dit"), threshold=1.0)
    third = build("dit").run(**FIRST)
    assert dict(vars(D.DiTPipeline)) == before
    expected, kept = first.run(**FIRST), []

    def act(step: int) -> None:
        kept.append(second.run(**OTHER))

    with each_step(first, act):
        assert torch.equal(first.run(**FIRST), expected)
    assert all(torch.equal(out, kept[0]) for out in kept) and len(kept) == 6
    assert set(words(first)) == {"C....."} and set(words(second)) == {"C....."}
    assert torch.equal(build("dit").run(**FIRST), third)


def test_a_generation_inside_another():
    tiny = cached(sd3(layers=3))
    known = [cached(sd3(layers=3)).run(**request) for request in (FIRST, OTHER)]
    outs: list[Tensor] = []

    def act(step: int) -> None:
        if step == 3:
            outs.append(tiny_inside.run(**OTHER))

    tiny_inside = twin(tiny)
    with each_step(tiny, act):
        outs.insert(0, tiny.run(**FIRST))
    assert all(map(torch.equal, outs, known))
    assert words(tiny) == ["C....."] * 2
    api.reset(tiny.pipe)


def test_guidance_that_skips_layers_still_skips_them():
    # C2: the blocks were hidden from the model, so none was skipped; with hits, batch four met batch two
    plain = sd3_skipped_layers(layers=5)
    expected, without = plain.run(**FIRST), plain.run(**FIRST, skip_guidance_layers=[99])
    assert not torch.allclose(expected, without, atol=1e-3)
    tiny = cached(sd3_skipped_layers(layers=5), max_warmup_steps=9)
    assert torch.equal(tiny.run(**FIRST), expected)
    cached(tiny)
    out = tiny.run(**FIRST)
    assert sorted(words(tiny)) == ["C...", "C....."]
    assert (out - expected).abs().mean() < (out - without).abs().mean()


def test_another_size_after_an_exception_in_a_callback():
    # F2: the residual of the other size was added
    tiny = cached(build("flux"))
    with pytest.raises(Broken):
        tiny.run(**FIRST, callback_on_step_end=raise_at(3))
    out = tiny.run(**OTHER, size=1)
    assert torch.equal(out, cached(build("flux")).run(**OTHER, size=1))
    assert words(tiny)[-2:] == ["C....."] * 2


@pytest.mark.parametrize("size", [0, 1])
def test_two_requests_take_turns_on_one_transformer(size):
    # F3 and C5: one was served from the other, or lost all its hits, or met a residual of another size
    requests = {"a": FIRST, "b": {**OTHER, "size": size}}
    known = {me: cached(build("flux")).run(**request) for me, request in requests.items()}
    tiny = cached(build("flux"))
    pipes, turns = {"a": tiny, "b": twin(tiny)}, Turns(["a", "b"])
    outs: dict[str, Tensor] = {}

    def work() -> None:
        me = threading.current_thread().name
        try:
            turns.begin()
            with each_step(pipes[me], lambda _: turns.take()):
                outs[me] = pipes[me].run(**requests[me])
        finally:
            turns.leave()

    in_threads(work, list(requests))
    assert turns.order == "ab" * 6
    for me, out in known.items():
        torch.testing.assert_close(outs[me], out)
    assert words(tiny) == ["C....."] * 4


def test_a_pipeline_that_names_no_branch():
    # F4: "no cache context is set"
    tiny = cached(flux_img2img(layers=3))
    tiny.run(**FIRST)
    assert words(tiny) == ["C..."] * 2


def test_guidance_with_default_settings_keeps_branches_apart():
    # C1: the residual of the conditional call was used for the unconditional one
    plain = build("flux")
    oracle = EagerF1B0(plain.transformer, "flux", 0.99, branches=2)
    expected = plain.run(**FIRST)
    mixed = build("flux")
    EagerF1B0(mixed.transformer, "flux", 0.99, branches=1)
    tiny = cached(build("flux"))
    out = tiny.run(**FIRST)
    torch.testing.assert_close(out, expected, atol=2e-4, rtol=2e-4)
    assert not torch.allclose(mixed.run(**FIRST), expected, atol=1e-2), "the difference must show"
    assert words(tiny) == oracle.decisions and {context.branch for context in contexts(tiny)} == {"cond", "uncond"}


def test_another_pipeline_on_the_cached_transformer():
    # C3: all its steps came from the picture before, or met a residual of another size
    expected = cached(flux_img2img(layers=3)).run(**FIRST)
    tiny = cached(flux(layers=3))
    tiny.run(**FIRST)
    parts = {**tiny.pipe.components, "scheduler": copy.deepcopy(tiny.pipe.scheduler)}
    other = flux_img2img(layers=3)
    other = TinyPipeline(quiet(D.FluxImg2ImgPipeline(**parts)), other.request, True, extra=other.extra)
    assert torch.equal(other.run(**FIRST), expected)
    assert words(tiny)[2:] == ["C..."] * 2
    assert other.run(**OTHER, size=1).isfinite().all()


@pytest.mark.parametrize("name", ["qwen", "wan"])
def test_guidance_switched_off(name):
    # C6: odd and even steps were taken for two branches
    tiny = cached(build(name))
    tiny.run(**{**FIRST, "cfg": False})
    assert words(tiny) == ["C....."]


def test_another_prompt_after_an_exception_in_a_callback():
    # F1: the next generation, its first step included, was served from the one that was broken off
    expected = cached(build("wan")).run(**OTHER)
    tiny = cached(build("wan"))
    with pytest.raises(Broken):
        tiny.run(**FIRST, callback_on_step_end=raise_at(3))
    seen = len(contexts(tiny))
    assert torch.equal(tiny.run(**OTHER), expected)
    assert words(tiny, seen) == ["C....."] * 2


def test_guidance_that_stops_in_the_middle():
    # C7: after that, every other conditional step was taken for an unconditional one
    tiny = cached(lumina2_truncated(layers=3))
    tiny.run(**FIRST)
    assert sorted(words(tiny)) == ["C..", "C....."]
