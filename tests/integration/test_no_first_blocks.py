"""Without first blocks the whole trunk is reused, on what its first block reads: tiny transformers of diffusers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fxcache.errors import RefusalWarning
from tests.integration.scenes import fxcache_of, play, relative
from tests.models.tiny import TinyModel
from tests.models.transformers import DIFFUSERS
from tests.models.wide import WIDE

MODELS: dict[str, Callable[..., TinyModel]] = {**DIFFUSERS, **WIDE}
OFTEN = {*DIFFUSERS, "flux2", "chroma", "auraflow", "sana", "cogview4", "ltx", "mochi", "kandinsky5", "krea2", "prx"}
"""The others are slow."""

REFUSED: dict[str, str] = {}
"""What cannot be cached so, with the sentence that says why."""

OPTIONS = {
    "Fn_compute_blocks": 0,
    "residual_diff_threshold": 1.0,
    "max_continuous_cached_steps": 1,
    "inner_backend": "eager",
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in OFTEN else pytest.mark.slow) for n in MODELS])
def test_computed_steps_keep_every_bit_and_an_equal_call_is_reused(name):
    model = MODELS[name](layers=3)
    if not model.fullgraph:
        pytest.skip("more than one graph")
    first = model.inputs(0)
    calls = [first, model.vary(first, amount=0.0), model.inputs(1)]
    expected = [model.run(call) for call in calls]
    compiled = fxcache_of(model.module, **OPTIONS)
    if name in REFUSED:
        with pytest.warns(RefusalWarning, match=REFUSED[name]):
            outputs = play(model, compiled, calls).outputs
        assert all(map(torch.equal, outputs, expected))
        return
    run = play(model, compiled, calls)
    assert run.decisions == "C.C"
    assert run.differences[1] == 0.0
    assert torch.equal(run.outputs[0], expected[0]) and torch.equal(run.outputs[2], expected[2])
    assert relative(run.outputs[1], expected[1]) < 1e-5
