"""Quantised weights are tensor subclasses, which AOTAutograd takes apart before the pass sees the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.integration.scenes import DECISIONS, equal, fxcache_of, plain, play, scene, worst
from tests.models.tiny import TinyModel
from tests.models.transformers import TRANSFORMERS

quantization = pytest.importorskip("torchao.quantization", reason="needs the extra [quant]")

SCHEMES = ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"]


def quantised(scheme: str) -> TinyModel:
    model = TRANSFORMERS["flux"](1, single_layers=3)
    quantization.quantize_(model.module, getattr(quantization, scheme)())
    assert any(type(parameter.data) is not torch.Tensor for parameter in model.module.parameters())
    return model


def check(model: TinyModel, backend: str, **options: Any) -> None:
    calls = scene(model)
    outputs = plain(model, calls, backend=backend)
    torch._dynamo.reset()
    run = play(model, fxcache_of(model.module, **options), calls)
    assert run.decisions == DECISIONS
    assert equal(run.computed(), run.choose(outputs))
    assert 1e-4 < worst(run.outputs[1:2], outputs[1:2]) < 0.2  # reused: near, and not computed


@pytest.mark.parametrize("scheme", SCHEMES)
def test_under_the_eager_inner_compiler(scheme: str) -> None:
    check(quantised(scheme), "aot_eager", inner_backend="eager")


def test_under_inductor() -> None:
    check(quantised(SCHEMES[0]), "inductor")
