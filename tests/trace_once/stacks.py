"""A small stack of blocks that the tests vary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, LAYERS = 8, 6


class Config:
    """An object that blocks may share."""

    def __init__(self, scale: float) -> None:
        self.scale = scale


CONFIG = Config(scale=0.5)


class Block(nn.Module):
    """Enough operators to be worth copying; `act` and `scale` are what the tests change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.act: Callable[[Tensor], Tensor] = F.gelu
        self.scale = 1.0
        self.config: Any = None
        self.table: Tensor | None = None

    def forward(self, h: Tensor, more: Any = None) -> Tensor:
        """One residual branch."""
        x = self.down(self.act(self.up(self.norm(h)))) * self.scale
        if self.config is not None:
            x = x * self.config.scale
        if self.table is not None:
            x = x + self.table
        if isinstance(more, Tensor):
            x = x + (more if more is h else 2 * more)
        elif more is not None:
            x = x + more
        return h + x.sin().cos().tanh()


class Model(nn.Module):
    """A stack of blocks."""

    def __init__(self, block: Callable[[], nn.Module] = Block) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        """Run all of them."""
        h = self.first(x)
        for number, block in enumerate(self.blocks):
            h = self.run(number, block, h)
        return h

    def run(self, number: int, block: nn.Module, h: Tensor) -> Any:
        """Run one."""
        return block(h)


def x() -> Tensor:
    return torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
