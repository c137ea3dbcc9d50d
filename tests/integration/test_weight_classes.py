"""Weights of a class that takes what operators make of it for weights, as those that diffusers reads from GGUF."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxcache.runtime.attribution import attribution
from tests.integration.scenes import DECISIONS, equal, fxcache_of, plain, play, scene, worst
from tests.models.tiny import TinyModel
from tests.models.transformers import TRANSFORMERS

SCALE = 64.0


class Coded(nn.Parameter):
    """Codes int8 [rows, columns]: every result of an operator on it is one as well, and has to have columns."""

    def __new__(cls, codes: torch.Tensor) -> Coded:
        made = torch.Tensor._make_subclass(cls, codes, False)
        made.columns = made.shape[-1]
        return made

    def values(self) -> torch.Tensor:
        codes = torch.Tensor._make_subclass(torch.Tensor, self, False)
        return codes.float() / SCALE

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, list | tuple):
            return type(result)(cls(each) if isinstance(each, torch.Tensor) else each for each in result)
        return cls(result) if isinstance(result, torch.Tensor) else result


class CodedLinear(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = Coded((linear.weight.detach() * SCALE).round().clamp(-127, 127).to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.values(), self.bias)


@pytest.fixture
def model() -> TinyModel:
    torch._dynamo.reset()
    attribution.forget()
    made = TRANSFORMERS["flux"](1, single_layers=3)
    for name, module in list(made.module.named_modules()):
        if isinstance(module, nn.Linear) and "blocks" in name:
            made.module.set_submodule(name, CodedLinear(module))
    assert sum(isinstance(each, Coded) for each in made.module.parameters()) > 20
    return made


@pytest.mark.parametrize("inner", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_coded_weights(model: TinyModel, inner: str) -> None:
    calls = scene(model)
    outputs = [each.as_subclass(torch.Tensor) for each in plain(model, calls, backend=inner)]
    torch._dynamo.reset()
    run = play(model, fxcache_of(model.module, inner_backend=inner), calls)
    assert run.decisions == DECISIONS
    assert equal(run.computed(), run.choose(outputs))
    assert 1e-4 < worst(run.outputs[1:2], outputs[1:2]) < 0.2
