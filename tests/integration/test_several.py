"""Several pipelines, models, schedulers and threads at once: everyone gets what they would get alone."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers as D
import pytest
import torch
from torch import Tensor

import fxcache.api as api
from tests.integration.eager import EagerF1B0, branches_of, mixed_threshold
from tests.integration.test_pipelines import Broken, breaking, build, cached, contexts
from tests.models.pipelines import PIPELINES, flux
from tests.models.tiny_pipeline import TinyPipeline, quiet
from tests.models.variants import flux_img2img, twin, wan_two

STEPS = 5


def words(tiny: TinyPipeline, since: int = 0) -> list[str]:
    return [context.decisions for context in contexts(tiny, since)]


def test_pipelines_of_one_class_with_their_own_options():
    settings: list[dict[str, Any]] = [
        {"threshold": 1.0},
        {"threshold": 0.5, "max_warmup_steps": 2},
        {"threshold": 1.0, "max_continuous_cached_steps": 1},
    ]

    def make(number: int) -> TinyPipeline:
        return cached(PIPELINES["dit"](seed=number, layers=3), **settings[number])

    alone = [make(number) for number in range(3)]
    expected = [tiny.run(steps=STEPS, cfg=True) for tiny in alone]
    together = [make(number) for number in range(3)]
    for _ in range(2):
        for number, tiny in enumerate(together):
            assert torch.equal(tiny.run(steps=STEPS, cfg=True), expected[number])
    for first, second in zip(alone, together, strict=True):
        assert words(first) * 2 == words(second)
    assert words(alone[2]) == ["C.C.C"] and words(alone[0]) == ["C...."]
    api.disable_cache(together[0].pipe)
    assert torch.equal(together[1].run(steps=STEPS, cfg=True), expected[1])
    plain = PIPELINES["dit"](seed=0, layers=3).run(steps=STEPS, cfg=True)
    assert torch.equal(together[0].run(steps=STEPS, cfg=True), plain)


@pytest.mark.parametrize("abort_at", [1, 2])
def test_img2img_after_an_aborted_txt2img_on_the_same_transformer(abort_at):
    def make() -> TinyPipeline:
        return cached(flux_img2img(layers=3))

    request = {"steps": STEPS, "cfg": False}
    expected = make().run(**request)
    tiny = make()
    parts = {**tiny.pipe.components, "scheduler": copy.deepcopy(tiny.pipe.scheduler)}
    text = TinyPipeline(quiet(D.FluxPipeline(**parts)), flux(layers=1).request, True, extra=tiny.extra)
    kept = tiny.inputs(**request)
    with pytest.raises(Broken), breaking(text, abort_at):
        text.run(**request, prompt_embeds=kept["prompt_embeds"], pooled_prompt_embeds=kept["pooled_prompt_embeds"])
    seen = len(contexts(tiny))
    assert torch.equal(tiny.pipe(**kept)[0], expected)
    assert words(tiny, seen) == ["C.."]
    # aborted at an earlier time: with the same prompt, and no name of the branch, the next one seems to go on
    with pytest.raises(Broken), breaking(tiny, abort_at):
        tiny.pipe(**{**kept, "strength": 1.0})
    generator, seen = torch.Generator().manual_seed(0), len(contexts(tiny))
    assert torch.equal(tiny.pipe(**{**kept, "generator": generator})[0], expected)
    assert words(tiny, seen) == ["C.."]


def test_two_transformers_of_one_pipeline():
    def make() -> TinyPipeline:
        return cached(wan_two(layers=3))

    request = {"steps": 6, "cfg": True}
    tiny = make()
    expected = tiny.run(**request)
    calls = dict.fromkeys(("transformer", "transformer_2"), 0)
    for context in contexts(tiny):
        assert context.decisions == "C" + "." * (context.steps - 1) and context.steps > 1
        calls[context.model] += context.steps
    assert sum(calls.values()) == 12 and min(calls.values()) >= 4
    assert [context.branch for context in contexts(tiny)] == ["cond", "uncond"] * 2
    seen = words(tiny)
    assert torch.equal(tiny.run(**request), expected)
    used = make()
    with pytest.raises(Broken), breaking(used, 5):
        used.run(**request, prompt_seed=3)
    assert torch.equal(used.run(**request), expected)
    oracle = wan_two(layers=3)
    memories = []
    for name in calls:
        memories.append(EagerF1B0(getattr(oracle.pipe, name), "wan", 0.99, branches=2))
    torch.testing.assert_close(expected, oracle.run(**request), atol=2e-4, rtol=2e-4)
    assert [word for memory in memories for word in memory.decisions] == seen
    api.disable_cache(tiny.pipe)
    assert tiny.pipe.transformer._compiled_call_impl is tiny.pipe.transformer_2._compiled_call_impl is None


@pytest.mark.parametrize(
    ("name", "scheduler", "calls"),
    [
        ("dit", D.HeunDiscreteScheduler, 2 * STEPS - 1),
        ("dit", D.PNDMScheduler, None),
        ("pixart", D.HeunDiscreteScheduler, 2 * STEPS - 1),
        ("pixart", D.PNDMScheduler, None),
        ("sd3", D.FlowMatchHeunDiscreteScheduler, 2 * STEPS - 1),
    ],
)
def test_schedulers_that_come_to_one_time_twice(name, scheduler, calls):
    def make() -> TinyPipeline:
        return PIPELINES[name](layers=3, scheduler=scheduler())

    threshold = mixed_threshold(make, name, STEPS, cfg=True)
    plain = make()
    oracle = EagerF1B0(plain.transformer, name, threshold, branches=branches_of(plain))
    expected = plain.run(steps=STEPS, cfg=True)
    tiny = cached(make(), threshold)
    for _ in range(2):
        seen = len(contexts(tiny))
        torch.testing.assert_close(tiny.run(steps=STEPS, cfg=True), expected, atol=5e-4, rtol=5e-4)
        assert words(tiny, seen) == oracle.decisions
        assert all(context.segment == 0 for context in contexts(tiny, seen))
    assert len(oracle.decisions[0]) == calls or (calls is None and len(oracle.decisions[0]) >= STEPS)


class Turns:
    """Lets threads take turns, one call of the transformer each."""

    def __init__(self, names: list[str]) -> None:
        self.waiting, self.changed, self.order = list(names), threading.Condition(), ""

    def take(self) -> None:
        """Wait for the turn of the running thread, and pass it on behind the call that follows."""
        me = threading.current_thread().name
        with self.changed:
            if me in self.waiting:
                assert self.changed.wait_for(lambda: self.waiting[0] == me, timeout=120)
                self.order += me
                self.waiting.append(self.waiting.pop(0))
                self.changed.notify_all()

    def leave(self) -> None:
        with self.changed:
            self.waiting.remove(threading.current_thread().name)
            self.changed.notify_all()


@contextmanager
def taking_turns(tiny: TinyPipeline, turns: Turns) -> Iterator[None]:
    """Hook into the name that the pipeline gives to every call."""
    model = tiny.transformer
    original = model.cache_context

    def cache_context(*args: Any, **kwargs: Any) -> Any:
        turns.take()
        return original(*args, **kwargs)

    model.cache_context = cache_context
    try:
        yield
    finally:
        del model.cache_context


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_two_threads_on_one_transformer(name):
    requests: dict[str, dict[str, Any]] = {
        "a": {"steps": STEPS, "cfg": True, "prompt_seed": 1},
        "b": {"steps": STEPS - 1, "cfg": True, "prompt_seed": 2, "latent_seed": 7},
    }
    expected = {me: cached(build(name)).run(**request) for me, request in requests.items()}
    tiny = cached(build(name))
    pipes = {"a": tiny, "b": twin(tiny)}
    turns, outs = Turns(["a", "b"]), {}
    errors: list[BaseException] = []

    def work() -> None:
        me = threading.current_thread().name
        try:
            outs[me] = pipes[me].run(**requests[me])
        except BaseException as error:
            errors.append(error)
        finally:
            turns.leave()

    with taking_turns(tiny, turns):
        start([work, work], list(requests))
    assert not errors
    assert turns.order.startswith("abababab")
    for me, wanted in expected.items():
        assert torch.equal(outs[me], wanted)
    assert sorted(words(tiny)) == sorted(["C...", "C...", "C....", "C...."])
    assert len({context.generation for context in contexts(tiny)}) == 2


def start(targets: list[Callable[[], None]], names: list[str]) -> None:
    threads = [threading.Thread(target=target, name=name) for target, name in zip(targets, names, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
        assert not thread.is_alive()


def test_the_same_tensors_in_two_threads_at_once():
    tiny = cached(build("dit"))
    kwargs = {"hidden_states": torch.randn(1, 4, 16, 16), "class_labels": torch.tensor([3]), "return_dict": False}
    plain = build("dit").transformer

    def loop(model: Any) -> list[Tensor]:
        with torch.no_grad(), api.generation():
            return [model(**kwargs, timestep=torch.tensor([900 - 100 * step]))[0] for step in range(4)]

    loop(tiny.transformer)
    expected = loop(tiny.transformer)
    assert torch.equal(expected[0], loop(plain)[0])
    outs: dict[str, list[Tensor]] = {}

    def work() -> None:
        for _ in range(5):
            outs[threading.current_thread().name] = loop(tiny.transformer)

    start([work] * 3, ["a", "b", "c"])
    assert len(outs) == 3
    for out in outs.values():
        assert all(map(torch.equal, out, expected))
