"""Blocks that were compiled one by one: one sentence that says what to compile instead, and the plain output."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxcache.api as api
from fxcache.errors import RefusalError
from tests.models.pipelines import PIPELINES
from tests.models.tiny_trunk import TinyTrunk
from tests.refusals import refusals
from tests.test_backend import WARN, inside, loop

REQUEST: dict[str, Any] = {"steps": 2, "cfg": True}
OPTIONS = {"inner_backend": "eager"}
INSTEAD = 'Compile the whole model instead, with fxcache.enable_cache(pipe) or transformer.compile(backend="fxcache")'


def in_place(model: Any, **more: Any) -> Any:
    model.compile_repeated_blocks(backend="fxcache", **more)
    return model


def replaced(model: Any, **more: Any) -> Any:
    from accelerate.utils import compile_regions

    return compile_regions(model, backend="fxcache", **more)


@pytest.mark.parametrize(
    ("name", "stack", "compile_parts"),
    [("flux", "transformer_blocks", in_place), ("wan", "blocks", in_place), ("wan", "blocks", replaced)],
)
def test_blocks_compiled_one_by_one_are_refused_once(name, stack, compile_parts):
    tiny = PIPELINES[name](layers=3)
    plain = tiny.run(**REQUEST)
    cls = type(tiny.transformer).__name__
    tiny.pipe.transformer = compile_parts(tiny.transformer, options=OPTIONS)
    with refusals() as sentences:
        assert torch.equal(tiny.run(**REQUEST), plain)
        assert torch.equal(tiny.run(**REQUEST), plain)
        tiny.run(**REQUEST, size=1)
    (sentence,) = sentences
    assert (
        f"the blocks in {stack} of {cls} are compiled one by one, and reuse needs all of them in one graph" in sentence
    )
    assert sentence.endswith(INSTEAD)
    assert api.summary(tiny.pipe).contexts == ()


def test_told_to_raise_it_raises():
    tiny = PIPELINES["wan"](layers=3)
    in_place(tiny.transformer, options={**OPTIONS, "on_refusal": "raise"})
    for _ in range(2):
        with pytest.raises(Exception, match="are compiled one by one") as caught:
            tiny.run(**REQUEST)
        assert isinstance(inside(caught.value), RefusalError)


def test_what_it_says_to_do_instead_works():
    tiny = PIPELINES["wan"](layers=3)
    in_place(tiny.transformer, options=OPTIONS)
    api.enable_cache(tiny.pipe, residual_diff_threshold=0.99, Fn_compute_blocks=1, max_warmup_steps=1, **OPTIONS)
    tiny.run(**{**REQUEST, "steps": 4})
    assert [context.decisions for context in api.summary(tiny.pipe).contexts] == ["C..."] * 2


class Outer(nn.Module):
    """Has a model among its parts, and a list of modules that are not compiled."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        super().__init__()
        self.inner = inner
        self.others = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    def forward(self, *args: Any) -> Any:
        return self.inner(*args)


def test_a_whole_model_inside_another_module_is_not_a_part():
    class Short(TinyTrunk):
        """No trunk: the blocks are one block long."""

    model = Short().eval()
    del model.blocks[1:]
    outer = Outer(torch.compile(model, backend="fxcache", options=WARN))
    with refusals() as sentences, torch.no_grad():
        outer(*loop(1)[0])
    (sentence,) = sentences
    assert not re.search("one by one", sentence) and "no chained stack of repeated blocks" in sentence
