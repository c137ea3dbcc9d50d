"""Attention as a higher-order operator with functions of its own inside: bit for bit, reused, counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import fxcache
from fxcache.runtime.attribution import attribution

WIDTH, HEADS, TOKENS = 32, 2, 256


def earlier_frames(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query // 128 >= key // 128


class Block(nn.Module):
    def __init__(self, biased: bool) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.slope = nn.Parameter(torch.rand(HEADS)) if biased else None

    def forward(self, x: Tensor, mask: Any) -> Tensor:
        heads = (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in self.qkv(self.norm(x)).chunk(3, -1))
        slope = self.slope

        def nearer(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return score - slope[head] * (query - key).abs() * 0.01  # type: ignore[index]

        mixed = flex_attention(*heads, score_mod=None if slope is None else nearer, block_mask=mask)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self, biased: bool) -> None:
        super().__init__()
        self.time = nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(Block(biased) for _ in range(4))

    def forward(self, x: Tensor, timestep: Tensor, mask: Any = None) -> Tensor:
        x = x + self.time(timestep[:, None])
        for block in self.blocks:
            x = block(x, mask)
        return x


@pytest.mark.parametrize("inner", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_flex_attention(biased: bool, inner: str) -> None:
    torch._dynamo.reset()
    attribution.forget()
    torch.manual_seed(0)
    model = Model(biased).eval()
    mask = None if biased else create_block_mask(earlier_frames, None, None, TOKENS, TOKENS, device="cpu")
    first = torch.randn(1, TOKENS, WIDTH)
    calls = [(first + 0.01 * i * torch.randn_like(first), torch.tensor([1.0 - i / 10]), mask) for i in range(4)]
    wanted = [torch.compile(model, backend=inner)(*call) for call in calls]

    torch._dynamo.reset()
    options = {"inner_backend": inner, "residual_diff_threshold": 0.5, "max_warmup_steps": 2, "on_refusal": "raise"}
    compiled = torch.compile(model, backend="fxcache", fullgraph=True, options=options)
    with fxcache.generation():
        found = [compiled(*call) for call in calls]
    (context,) = fxcache.summary(compiled).contexts
    assert context.decisions == "CC.."
    assert all(torch.equal(*pair) for pair in zip(found[:2], wanted[:2], strict=True))
    errors = [float((one - other).abs().max()) for one, other in zip(found[2:], wanted[2:], strict=True)]
    assert all(1e-6 < error < 0.3 for error in errors), errors
    torch._dynamo.reset()


@torch.no_grad()
def test_its_work_is_counted() -> None:
    torch._dynamo.reset()
    found = fxcache.explain(Model(False).eval(), torch.randn(1, TOKENS, WIDTH), torch.tensor([1.0]))
    products = 2 * TOKENS * WIDTH * 4 * WIDTH
    attention = 4 * TOKENS * TOKENS * WIDTH
    assert found.flops is not None and found.flops.middle == 3 * (products + attention)
