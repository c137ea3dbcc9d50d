"""The settings of Dynamo under which `enable_cache` traces: for its own calls, and for nobody else's."""

from __future__ import annotations

import threading

import pytest
import torch
import torch._dynamo.config as config
from torch._dynamo.utils import counters

import fxcache.api as api
from fxcache.tracing import SETTINGS, TOO_MUCH, keeping_whole
from tests.models.scattered import MaskedText
from tests.test_breaks import loop


def settings() -> dict[str, object]:
    return {name: getattr(config, name) for name in SETTINGS}


def test_they_hold_during_the_call_on_its_thread():
    before, seen = settings(), []

    def call() -> None:
        seen.append(settings())
        other = threading.Thread(target=lambda: seen.append(settings()))
        other.start()
        other.join()

    keeping_whole(call)()
    assert seen == [SETTINGS, before] and settings() == before != SETTINGS


def test_they_are_gone_after_an_exception():
    before = settings()

    def call() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        keeping_whole(call)()
    assert settings() == before


def test_those_of_the_user_come_back():
    with config.patch(capture_scalar_outputs=True):
        keeping_whole(lambda: None)()
        assert config.capture_scalar_outputs and not config.capture_dynamic_output_shape_ops


def test_what_is_compiled_elsewhere_is_traced_as_before():
    model = api.enable_cache(MaskedText().eval(), inner_backend="eager")
    counters.clear()
    with torch.no_grad():
        model(*loop(1)[0])
        assert not counters["graph_break"]
        torch.compile(lambda x: x * int(x.sum()), backend="eager")(torch.ones(3))
    assert counters["graph_break"]


class Lengths(torch.nn.Module):
    """Python must know a number that is read off a tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = int((x[:, 0] < 9).sum())
        signs = (x[:, 0] > 0).long()[:count].tolist()
        return x * len([i for i in range(1, count + 1) if i == count or signs[i] != signs[0]])


def test_a_model_whose_code_needs_a_value_is_traced_as_by_default():
    model, seen = Lengths(), []

    def backend(gm: torch.fx.GraphModule, _: object) -> object:
        seen.append(settings())
        return gm.forward

    before, x = settings(), torch.randn(5, 4)
    with config.patch(**SETTINGS), pytest.raises(TOO_MUCH):
        torch.compile(model, backend=backend)(x)
    torch._dynamo.reset()
    compiled = keeping_whole(torch.compile(model, backend=backend))
    for _ in range(2):
        assert torch.equal(compiled(x), model(x))
    assert seen and seen[-1] == before == settings()
