"""Layers that are one opaque operator: the trunk is found, cached, and its work is told as far as it is known."""

from __future__ import annotations

import pytest
import torch

from fxcache.api import context, enable_cache, summary
from fxcache.explain import explain
from fxcache.runtime.attribution import attribution
from tests.integration.eager import EagerF1B0
from tests.integration.opaque import pack
from tests.integration.scenes import DECISIONS, OPTIONS, equal, fxcache_of, plain, play, scene, worst
from tests.models.pipelines import flux as flux_pipeline
from tests.models.tiny import TinyModel
from tests.models.transformers import TRANSFORMERS


@pytest.fixture
def model() -> TinyModel:
    torch._dynamo.reset()
    attribution.forget()
    made = TRANSFORMERS["flux"](1, single_layers=3)
    for stack in ("transformer_blocks", "single_transformer_blocks"):
        pack(made.module.get_submodule(stack))
    return made


@pytest.mark.parametrize("inner", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_opaque_layers(model: TinyModel, inner: str) -> None:
    calls = scene(model)
    outputs = plain(model, calls, backend="aot_eager" if inner == "eager" else "inductor")
    torch._dynamo.reset()
    run = play(model, fxcache_of(model.module, inner_backend=inner), calls)
    assert run.decisions == DECISIONS
    assert equal(run.computed(), run.choose(outputs))
    assert 1e-4 < worst(run.outputs[1:2], outputs[1:2]) < 0.2


def test_a_pipeline_against_the_eager_oracle() -> None:
    torch._dynamo.reset()
    tiny, alone = flux_pipeline(layers=3), flux_pipeline(layers=3)
    for each in (tiny, alone):
        pack(each.transformer.transformer_blocks)
        pack(each.transformer.single_transformer_blocks)
    oracle = EagerF1B0(alone.transformer, "flux", threshold=0.9)
    enable_cache(tiny.pipe, **{**OPTIONS, "residual_diff_threshold": 0.9, "inner_backend": "eager"}, fullgraph=True)
    expected = alone.run(steps=4)
    assert worst([tiny.run(steps=4)], [expected]) < 1e-5
    assert oracle.decisions == [summary(tiny.pipe).contexts[-1].decisions] == ["C..."]


def test_explain_counts_what_it_knows(model: TinyModel) -> None:
    report = explain(model.module, **model.inputs())
    assert report.refusal is None and 0 < report.flops.middle < report.total_flops
    assert report.uncounted == ("fxcache_tests.packed_linear",)
    assert "not counted  fxcache_tests.packed_linear" in str(report)


def test_explain_counts_all_of_a_plain_model() -> None:
    plain_model = TRANSFORMERS["flux"](1, single_layers=3)
    report = explain(plain_model.module, **plain_model.inputs())
    assert report.uncounted == () and "not counted" not in str(report)


def test_packed_weights_written_in_place(model: TinyModel) -> None:
    compiled, word = fxcache_of(model.module, inner_backend="eager", residual_diff_threshold=0.9), ""
    for step in range(4):
        if step == 2:
            model.module.get_submodule("single_transformer_blocks.2.proj_out").packed.neg_()
        call = model.inputs(step, drift=0.005)
        with context("branch", step_index=step):
            made = model.run(call, compiled)
        word += "C" if torch.equal(made, model.run(call)) else "."
    assert word == "C.C."
