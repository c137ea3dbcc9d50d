"""The reference implementation itself does what the literature says of DBCache."""

from __future__ import annotations

import pytest
import torch

from fxcache.options import Options
from tests.models.tiny_trunk import tiny_trunk
from tests.oracle import EagerDBCache, Label


def decisions(steps: int, scale: float = 1e-4, **options) -> str:
    """Walk slowly, so that every difference is far below the threshold."""
    oracle = EagerDBCache(tiny_trunk(), Options(**{"residual_diff_threshold": 0.99, "Fn_compute_blocks": 1, **options}))
    start, text = torch.randn(1, 4, 16), torch.randn(1, 3, 16)
    codes = ""
    for step in range(steps):
        x, t = start * (1 + scale * step), torch.tensor([1 - scale * step])
        codes += "." if oracle.call(Label("image", "cond"), x, t, text)[1].reused else "C"
    return codes


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_warmup_steps": 2}, "CC......"),
        ({"max_warmup_steps": 2, "max_continuous_cached_steps": 1}, "CC.C.C.C"),
        ({"max_warmup_steps": 2, "max_continuous_cached_steps": 2}, "CC..C..C"),
        ({"max_warmup_steps": 2, "max_continuous_cached_steps": 3}, "CC...C.."),
        ({"max_warmup_steps": 2, "max_cached_steps": 2}, "CC..CCCC"),
        ({"max_warmup_steps": 6, "warmup_interval": 2}, "C.C.C..."),
        ({"max_warmup_steps": 0}, "C......."),
        ({"residual_diff_threshold": 1.5, "max_warmup_steps": 1}, "C......."),
        ({"residual_diff_threshold": 1e-9, "max_warmup_steps": 1}, "CCCCCCCC"),
    ],
)
def test_known_patterns(options, expected):
    torch.manual_seed(0)
    assert decisions(8, **options) == expected


@pytest.mark.parametrize("two_streams", [False, True])
@pytest.mark.parametrize(("first", "last"), [(1, 0), (2, 1)])
def test_computed_steps_are_the_model_and_reused_ones_are_near(two_streams, first, last):
    torch.manual_seed(0)
    model = tiny_trunk(two_streams)
    options = Options(residual_diff_threshold=0.99, max_warmup_steps=2, Fn_compute_blocks=first, Bn_compute_blocks=last)
    oracle = EagerDBCache(model, options)
    start, text = torch.randn(2, 4, 16), torch.randn(2, 3, 16)
    for step in range(5):
        x, t = start * (1 + 0.01 * step), torch.full((2,), 1 - 0.01 * step)
        out, decision = oracle.call(Label("image", "cond"), x, t, text)
        true = model(x, t, text)
        assert decision.reused == (step >= 2)
        assert torch.equal(out, true) != decision.reused
        torch.testing.assert_close(out, true, atol=0.05, rtol=0.05)
