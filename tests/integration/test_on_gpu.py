"""The whole way on a GPU: Inductor's Triton code, the fused kernels, decisions read by the host, quantised weights.

The oracles are the same model under plain Inductor on the same GPU, float64 on the CPU, and fxcache on the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxcache.api import disable_cache, enable_cache, summary
from fxcache.errors import RefusalWarning
from fxcache.runtime.attribution import attribution
from tests.integration.scenes import (
    DECISIONS,
    Run,
    equal,
    fxcache_of,
    in_double,
    mean_error,
    plain,
    play,
    relative,
    scene,
    worst,
)
from tests.integration.test_inductor import MODELS
from tests.models.pipelines import flux
from tests.models.tiny import TinyModel, seeded
from tests.models.tiny_pipeline import TinyPipeline
from tests.models.transformers import TRANSFORMERS

pytestmark = pytest.mark.gpu

GPU = "cuda"
FIXED = {"deterministic": True}
"""Inductor times configurations of its kernels on the GPU and takes the fastest: two compilations may sum in other
orders. With this setting it takes what it takes for granted."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CALIBRATORS: dict[str, dict[str, Any]] = {
    "taylorseer1": {"calibrator": "taylorseer", "taylorseer_order": 1},
    "taylorseer2": {"calibrator": "taylorseer", "taylorseer_order": 2},
    "foca": {"calibrator": "foca"},
    "dmd": {"calibrator": "dmd"},
}


def moved(calls: Sequence[Any]) -> list[dict[str, Any]]:
    return [pytree.tree_map(lambda leaf: leaf.to(GPU) if isinstance(leaf, Tensor) else leaf, dict(c)) for c in calls]


def on_gpu(model: TinyModel) -> TinyModel:
    model.module.to(GPU)
    return model


def played(model: TinyModel, calls: Sequence[Any], **options: Any) -> Run:
    torch._dynamo.reset()
    return play(model, fxcache_of(model.module, **options), calls)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_decisions_and_values(name: str, dtype: str) -> None:
    build, threshold = MODELS[name]
    model = build(dtype=DTYPES[dtype])
    calls = scene(model)
    references = in_double(copy.deepcopy(model), calls)
    on_gpu(model)
    calls = moved(calls)
    torch._dynamo.reset()
    outputs = plain(model, calls, options=FIXED)
    assert equal(played(model, calls, residual_diff_threshold=0, inner_options=FIXED).outputs, outputs)
    run = played(model, calls, residual_diff_threshold=threshold, inner_options=FIXED)
    assert run.decisions == DECISIONS
    assert run.differences[-1] == 0.0
    assert worst(run.outputs[1:2], outputs[1:2]) > 1e-4  # it was reused indeed
    wanted = [reference.to(GPU) for reference in run.choose(references)]
    assert mean_error(run.computed(), wanted) <= 1.1 * mean_error(run.choose(outputs), wanted)


@pytest.mark.parametrize("share", [True, False])
def test_shared_blocks(share: bool) -> None:
    model = MODELS["flux"][0]()
    calls = scene(model)
    references = in_double(copy.deepcopy(model), calls)
    on_gpu(model)
    outputs = plain(model, moved(calls))
    run = played(model, moved(calls), share_blocks=share)
    assert run.decisions == DECISIONS
    wanted = [reference.to(GPU) for reference in run.choose(references)]
    assert mean_error(run.computed(), wanted) <= 1.1 * mean_error(run.choose(outputs), wanted)


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_forecasts_are_those_of_the_cpu(calibrator: str) -> None:
    model = TRANSFORMERS["flux"](3, single_layers=3)
    calls = [model.inputs(step, drift=0.02) for step in range(8)]
    options: dict[str, Any] = {
        "residual_diff_threshold": 1e9,
        "max_warmup_steps": 5,
        "max_continuous_cached_steps": 1,
        **CALIBRATORS[calibrator],
    }
    on_cpu = played(model, calls, inner_backend="eager", **options)
    made = played(on_gpu(model), moved(calls), **options)
    assert made.decisions == on_cpu.decisions == "CCCCC.C."
    assert worst([output.cpu() for output in made.outputs], on_cpu.outputs) < 1e-4


@pytest.mark.parametrize("indicator", ["input", "previous"])
def test_pruned_blocks_are_those_of_the_cpu(indicator: str) -> None:
    model = TRANSFORMERS["flux"](3, single_layers=3)
    calls = [model.inputs(step, drift=0.02) for step in range(6)]
    options = {"method": "dbprune", "prune_indicator": indicator, "residual_diff_threshold": 0.05}
    on_cpu = played(model, calls, inner_backend="eager", **options)
    made = played(on_gpu(model), moved(calls), **options)
    assert made.decisions == on_cpu.decisions
    assert set(made.decisions) != {"C"}, "nothing was pruned"
    assert worst([output.cpu() for output in made.outputs], on_cpu.outputs) < 1e-4


QUANTISED: dict[str, dict[str, Any]] = {
    "Int8WeightOnlyConfig": {},
    "Int8DynamicActivationInt8WeightConfig": {},
    "Float8WeightOnlyConfig": {},
    "Float8DynamicActivationFloat8WeightConfig": {},
    "Int4WeightOnlyConfig": {"group_size": 32},
}
"""Schemes of torchao with their arguments."""


def wide_flux() -> TinyModel:
    """Widths that the kernels for eight and four bits accept."""
    narrow = TRANSFORMERS["flux"](3, single_layers=3, dtype=torch.bfloat16)
    config = {
        **narrow.module.config,
        "num_attention_heads": 4,
        "attention_head_dim": 64,
        "axes_dims_rope": (16, 24, 24),
    }
    module = seeded(lambda: diffusers.FluxTransformer2DModel.from_config(config), 0, torch.bfloat16)
    return TinyModel(module, narrow.make, changing=narrow.changing, dtype=narrow.dtype)


def in_a_block(layer: nn.Module, name: str) -> bool:
    return isinstance(layer, nn.Linear) and "transformer_blocks" in name and layer.in_features % 256 == 0


@pytest.mark.parametrize("scheme", QUANTISED)
def test_quantised_weights(scheme: str) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="needs the extra [quant]")
    model = on_gpu(wide_flux())
    try:
        config = getattr(quantization, scheme)(**QUANTISED[scheme])
        quantization.quantize_(model.module, config, filter_fn=in_a_block)
    except (ImportError, AssertionError, RuntimeError) as error:
        pytest.skip(f"torchao: {str(error).splitlines()[0]}")
    assert any(type(parameter.data) is not Tensor for parameter in model.module.parameters())
    calls = moved(scene(model))
    torch._dynamo.reset()
    outputs = plain(model, calls, options=FIXED)
    assert equal(played(model, calls, residual_diff_threshold=0, inner_options=FIXED).outputs, outputs)
    run = played(model, calls, inner_options=FIXED)
    assert run.decisions == DECISIONS
    assert worst(run.computed(), run.choose(outputs)) < 0.02
    assert worst(run.outputs[1:2], outputs[1:2]) > worst(run.computed(), run.choose(outputs))


def generations(tiny: TinyPipeline) -> list[Tensor]:
    requests = [tiny.inputs(steps=4, prompt_seed=seed) for seed in (0, 1)]
    return [tiny.pipe(**moved([request])[0])[0].cpu() for request in requests]


def by_model(pipe: Any) -> None:
    pipe.enable_model_cpu_offload()


def by_layer(pipe: Any) -> None:
    pipe.enable_sequential_cpu_offload()


def in_groups(pipe: Any) -> None:
    pipe.to(GPU)
    apply_group_offloading(pipe.transformer, torch.device(GPU), torch.device("cpu"), "block_level", 1)


@pytest.mark.parametrize("offload", [by_model, by_layer, in_groups])
def test_offloaded(offload: Callable[[Any], None]) -> None:
    """The pictures are those of the pipeline that stays on the GPU, or, refused, those without a cache."""
    cached: dict[str, Any] = {
        "Fn_compute_blocks": 1,
        "max_warmup_steps": 1,
        "residual_diff_threshold": 0.9,
        "inner_backend": "eager",
    }
    attribution.forget()
    resident = flux(layers=3)
    resident.pipe.to(GPU)
    uncached = generations(resident)
    enable_cache(resident.pipe, **cached)
    reused = generations(resident)
    assert not equal(reused, uncached)
    disable_cache(resident.pipe)

    torch._dynamo.reset()
    attribution.forget()
    tiny = flux(layers=3)
    offload(tiny.pipe)
    enable_cache(tiny.pipe, **cached)
    if offload is by_model:
        made, wanted = generations(tiny), reused
        assert [found.decisions for found in summary(tiny.pipe).contexts] == ["C..."] * 2
    else:
        with pytest.warns(RefusalWarning, match="graph breaks cut the model"):
            made = generations(tiny)
        wanted = uncached
        assert not summary(tiny.pipe).contexts
    assert max(map(relative, made, wanted)) < 1e-5
