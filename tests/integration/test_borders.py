"""What passes the border of a branch, or of a block that is shared, through Inductor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcache
from fxcache.tracing import keeping_whole
from tests.slow import some_slow

WIDTH = 16


class Block(nn.Module):
    """Attention without a projection in front, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        attention = nn.functional.scaled_dot_product_attention(normed[:, None], normed[:, None], normed[:, None])[:, 0]
        x = x + self.out(attention)
        return x + self.mlp(self.norm(x))


class Turned(nn.Module):
    """Computes its rotations itself, of parts of coordinates that all share, scaled by a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.into, self.out = Block(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, coordinates: Tensor) -> Tensor:
        start, end = coordinates.split(1, dim=-1)
        angles = (start + end) / 2 / torch.tensor([3.0, 5.0, 7.0, 9.0], device=x.device)
        angles = torch.cat([angles, angles], -1).repeat_interleave(2, -1)
        inside = self.into(x)
        return self.block(x) + self.out(inside * angles.cos() + inside.flip(-1) * angles.sin())


class Rotating(nn.Module):
    """Hands the coordinates to every block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Turned() for _ in range(4))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], dtype=torch.float32)
        coordinates = torch.stack([places, places + time], -1)
        for block in self.blocks:
            x = block(x, coordinates)
        return x


class Skips(nn.Module):
    """Patches of a picture; the second half of the blocks reads what the first half made, last first."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 2, 2)
        self.blocks = nn.ModuleList(Block() for _ in range(6))
        self.merges = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x, kept = self.patches(x).flatten(2).mT + time, []
        for i, block in enumerate(self.blocks):
            if i < 3:
                x = block(x)
                kept.append(x)
            else:
                x = block(self.merges[i - 3](torch.cat([x, kept.pop()], -1)))
        return x


class Gated(Block):
    """Both parts of a block scaled by the time."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(WIDTH, 2 * WIDTH)

    def gated(self, x: Tensor, time: Tensor) -> Tensor:
        first, second = self.gates(time)[:, None].chunk(2, -1)
        x = x + first * self.out(self.norm(x))
        return x + second * self.mlp(self.norm(x))


class Patches(nn.Module):
    """Adds to patches of a picture, which a convolution leaves channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.time = nn.Conv2d(3, WIDTH, 2, 2), nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(Gated() for _ in range(4))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x, time = self.patches(x).flatten(2).mT, self.time(time[:, None])
        for block in self.blocks:
            x = block.gated(x, time)  # type: ignore[operator]
        return x


def tokens(step: int, size: int) -> Tensor:
    made: Tensor = torch.randn(1, 12, WIDTH, generator=torch.Generator().manual_seed(step)) / (1 + size)
    return made


def picture(step: int, size: int) -> Tensor:
    return torch.randn(1, 3, 8 + 4 * size, 8 + 6 * size, generator=torch.Generator().manual_seed(step))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], Tensor]]] = {
    "parts and constants": (Rotating, tokens),
    "skip connections of dynamic size": (Skips, picture),
    "sums with patches that lie channels first": (Patches, picture),
}


@torch.no_grad()
def played(module: nn.Module, inputs: Callable[[int, int], Tensor], call: Callable[..., Any]) -> list[Tensor]:
    """Two steps, the second once more, another size twice."""
    outs: list[Tensor] = []
    with fxcache.generation():
        for step, (seed, size) in enumerate([(0, 0), (1, 0), (1, 0), (2, 1), (2, 1)]):
            with fxcache.context("one", step_index=step):
                outs.append(call(inputs(seed, size), torch.tensor([1 - 0.1 * seed])).clone())
    return outs


@pytest.mark.parametrize("name", some_slow(CASES, ("skip connections of dynamic size",)))
@pytest.mark.parametrize("share", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_passes_a_border(name: str, share: bool) -> None:
    """Computed steps are those of plain Inductor to the last bit, an identical one is reused."""
    build, inputs = CASES[name]
    torch.manual_seed(0)
    module = build().eval()
    torch._dynamo.reset()
    wanted = played(module, inputs, keeping_whole(torch.compile(module, backend="inductor")))
    torch._dynamo.reset()
    config = fxcache.DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=1e-6)
    fxcache.enable_cache(module, cache_config=config, share_blocks=share, on_refusal="raise")
    outs = played(module, inputs, module)
    words = [context.decisions for context in fxcache.summary(module).contexts]
    assert "".join(words) == "CC.C."
    assert all(torch.equal(outs[i], wanted[i]) for i in (0, 1, 3))
    for i in (2, 4):
        torch.testing.assert_close(outs[i], wanted[i], rtol=1e-5, atol=1e-5)
