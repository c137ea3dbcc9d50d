"""Quantised weights are tensor subclasses, which AOTAutograd takes apart before the pass sees the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from fxcache.api import context
from tests.integration.scenes import DECISIONS, equal, fxcache_of, plain, play, scene, worst
from tests.models.tiny import TinyModel
from tests.models.transformers import TRANSFORMERS

quantization = pytest.importorskip("torchao.quantization", reason="needs the extra [quant]")

SCHEMES = [
    "Int8WeightOnlyConfig",
    "Int8DynamicActivationInt8WeightConfig",
    "Float8WeightOnlyConfig",
    "IntxWeightOnlyConfig",
]
"""Those that run on a CPU: the others ask for CUDA or for another package, see docs/combining.md."""


def quantised(scheme: str, seed: int = 0) -> TinyModel:
    model = TRANSFORMERS["flux"](1, seed, single_layers=3)
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


@pytest.mark.parametrize("scheme", [SCHEMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in SCHEMES[1:])])
def test_under_inductor(scheme: str) -> None:
    check(quantised(scheme), "inductor")


def test_weights_quantised_in_the_middle_of_a_generation() -> None:
    """`quantize_` puts other parameters in place of the old ones: Dynamo compiles again, nothing old is reused."""
    model = TRANSFORMERS["flux"](1, single_layers=3)
    compiled, word = fxcache_of(model.module, inner_backend="eager", residual_diff_threshold=0.9), ""
    for step in range(4):
        if step == 2:
            quantization.quantize_(model.module, quantization.Int8WeightOnlyConfig())
        call = model.inputs(step, drift=0.005)
        with context("branch", step_index=step):
            made = model.run(call, compiled)
        word += "C" if torch.equal(made, model.run(call)) else "."
    assert word == "C.C."


def test_quantised_weights_written_in_place() -> None:
    model, other = quantised(SCHEMES[0]), quantised(SCHEMES[0], seed=1)
    compiled, word = fxcache_of(model.module, inner_backend="eager", residual_diff_threshold=0.9), ""
    for step in range(4):
        if step == 2:
            name = "single_transformer_blocks.2.proj_out"
            with torch.no_grad():
                model.module.get_submodule(name).weight.copy_(other.module.get_submodule(name).weight)
        call = model.inputs(step, drift=0.005)
        with context("branch", step_index=step):
            made = model.run(call, compiled)
        word += "C" if torch.equal(made, model.run(call)) else "."
    assert word == "C.C."


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_loaded_as_diffusers_quantises(tmp_path: Path) -> None:
    tiny = TRANSFORMERS["flux"](1, single_layers=3)
    tiny.module.save_pretrained(tmp_path)
    module = diffusers.FluxTransformer2DModel.from_pretrained(
        tmp_path,
        quantization_config=diffusers.TorchAoConfig(quantization.Int8WeightOnlyConfig()),
        torch_dtype=torch.float32,
    )
    assert any(type(parameter.data) is not torch.Tensor for parameter in module.parameters())
    check(TinyModel(module, tiny.make, changing=tiny.changing), "aot_eager", inner_backend="eager")
