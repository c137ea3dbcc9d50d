"""Without first blocks the whole trunk is reused, on what its first block reads: tiny transformers of diffusers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.integration.scenes import fxcache_of, play, relative
from tests.models.tiny import TinyModel
from tests.models.transformers import DIFFUSERS
from tests.models.wide import WIDE

MODELS: dict[str, Callable[..., TinyModel]] = {**DIFFUSERS, **WIDE}
OFTEN = {*DIFFUSERS, "auraflow", "sana", "cogview4", "cogview3plus", "ltx", "kandinsky5", "krea2", "prx"} - {
    "hunyuan_video"
}
"""The others are slow."""

FOUR_LAYERS = {"hunyuan_dit", "consisid", "wan_animate"}
"""Three are too few for the class."""

OPTIONS = {
    "Fn_compute_blocks": 0,
    "residual_diff_threshold": 1.0,
    "max_continuous_cached_steps": 1,
    "inner_backend": "eager",
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in OFTEN else pytest.mark.slow) for n in MODELS])
def test_computed_steps_keep_every_bit_and_an_equal_call_is_reused(name):
    model = MODELS[name](layers=4 if name in FOUR_LAYERS else 3)
    if not model.fullgraph:
        pytest.skip("more than one graph")
    first = model.inputs(0)
    calls = [first, model.vary(first, amount=0.0), model.inputs(1)]
    expected = [model.run(call) for call in calls]
    compiled = fxcache_of(model.module, **OPTIONS)
    run = play(model, compiled, calls)
    assert run.decisions == "C.C"
    assert run.differences[1] == 0.0
    assert torch.equal(run.outputs[0], expected[0]) and torch.equal(run.outputs[2], expected[2])
    assert relative(run.outputs[1], expected[1]) < 1e-5
