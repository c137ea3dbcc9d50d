"""Offloading and casting by hooks, with the CPU as execution device: the same pictures, or a refusal with the place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor

from fxcache.api import disable_cache, enable_cache, summary
from fxcache.errors import RefusalWarning
from fxcache.runtime.attribution import attribution
from tests.integration.scenes import OPTIONS
from tests.models.pipelines import flux
from tests.models.tiny_pipeline import TinyPipeline

CPU = torch.device("cpu")
CACHED: dict[str, Any] = {**OPTIONS, "residual_diff_threshold": 0.9, "inner_backend": "eager"}


def generations(tiny: TinyPipeline) -> list[Tensor]:
    return [tiny.run(steps=4, prompt_seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def without() -> list[Tensor]:
    torch._dynamo.reset()
    attribution.forget()
    tiny = flux(layers=3)
    enable_cache(tiny.pipe, **CACHED)
    return generations(tiny)


@pytest.mark.parametrize("first", [False, True])
def test_model_offload(without: list[Tensor], first: bool) -> None:
    torch._dynamo.reset()
    attribution.forget()
    tiny = flux(layers=3)
    if first:
        tiny.pipe.enable_model_cpu_offload(device="cpu")
    enable_cache(tiny.pipe, **CACHED)
    if not first:
        tiny.pipe.enable_model_cpu_offload(device="cpu")
    assert all(map(torch.equal, generations(tiny), without))
    assert [made.decisions for made in summary(tiny.pipe).contexts] == ["C..."] * 2
    disable_cache(tiny.pipe)


def in_groups(tiny: TinyPipeline) -> None:
    apply_group_offloading(tiny.transformer, CPU, CPU, "block_level", num_blocks_per_group=1)


def cast_by_layer(tiny: TinyPipeline) -> None:
    tiny.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prepare", "place"), [(in_groups, r"hooks/group_of"), (cast_by_layer, r"torch.nn.Parameter\(\)")]
)
def test_hooks_at_every_block_are_refused(prepare: Callable[[TinyPipeline], None], place: str) -> None:
    torch._dynamo.reset()
    attribution.forget()
    tiny = flux(layers=3)
    prepare(tiny)
    alone = tiny.run(steps=2)
    enable_cache(tiny.pipe, **CACHED)
    with pytest.warns(RefusalWarning, match=rf"graph breaks cut the model .*{place}"):
        made = tiny.run(steps=2)
    torch.testing.assert_close(made, alone)
    assert not summary(tiny.pipe).contexts
