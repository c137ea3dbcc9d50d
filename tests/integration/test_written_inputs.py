"""Inputs that the blocks write to: keys and values that a video model keeps of earlier frames."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxcache import api
from tests.refusals import refusals

HEADS, WIDTH, LENGTH, FRAME, BLOCKS = 2, 16, 12, 4, 4
Kept = list[list[Tensor]]


class Block(nn.Module):
    """Reads what was kept of earlier frames, and keeps its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, time: Tensor, kept: list[Tensor], begin: int) -> Tensor:
        query, key, value = self.qkv(self.norm(x) + time[:, None]).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        end = begin + x.shape[1]
        kept[0][:, :, begin:end], kept[1][:, :, begin:end] = key, value
        read = functional.scaled_dot_product_attention(query, kept[0][:, :, :end], kept[1][:, :, :end])
        return x + self.out(read.transpose(1, 2).flatten(-2))


class Video(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.outside = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, hidden_states: Tensor, timestep: Tensor, kept: Kept, begin: int) -> Tensor:
        x = self.inside(hidden_states)
        for block, own in zip(self.blocks, kept, strict=True):
            x = block(x, timestep[:, None].expand(-1, WIDTH), own, begin)
        return self.outside(x)


def nothing_kept() -> Kept:
    return [[torch.zeros(1, HEADS, LENGTH, WIDTH // HEADS) for _ in range(2)] for _ in range(BLOCKS)]


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_a_model_whose_blocks_write_to_its_inputs_is_refused_and_runs(inner):
    model, reference = Video().eval(), Video().eval()
    api.enable_cache(model, Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=100.0, inner_backend=inner)
    mine, theirs = nothing_kept(), nothing_kept()
    x = torch.randn(1, FRAME, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), refusals() as said:
        for begin in (FRAME, 2 * FRAME):
            for time in (1.0, 0.9, 0.8):
                call = x + 0.01 * time, torch.tensor([time])
                torch.testing.assert_close(model(*call, mine, begin), reference(*call, theirs, begin))
                torch.testing.assert_close(mine, theirs)
    assert api.summary(model).contexts == ()
    assert said
    for sentence in said:
        assert "the blocks write to tensors that are handed to the model" in sentence
