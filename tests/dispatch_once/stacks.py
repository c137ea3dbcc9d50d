"""Small models whose blocks do, or suffer, what a call of a submodule would not show."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn

WIDTH = 8
Between: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"


class Block(nn.Module):
    """A residual block of more operators than are worth leaving alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH, bias=False), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Map states [B, N, WIDTH], scaled [B, 1, WIDTH], to such states."""
        gate, up = self.up(self.norm(x) * (1 + scale)).chunk(2, dim=-1)
        return x + self.down(torch.cat([torch.nn.functional.silu(gate) * up, up], dim=-1))


class WritesToItsInput(Block):
    """The states handed over are changed."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Add to the states in place."""
        x += super().forward(x, scale)
        return x


class WritesInside(Block):
    """A value of its own is changed."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Change some of the result in place."""
        result = super().forward(x, scale)
        result[:, 1:] *= 2
        return result


class ReturnsAView(Block):
    """The result is a part of something larger."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return one half of two."""
        return torch.cat([super().forward(x, scale), x], dim=1)[:, x.shape[1] :]


class ReturnsAViewOfItsInput(Block):
    """The result is the input, seen otherwise."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the input and what is made of it, which nobody reads."""
        super().forward(x, scale)
        return x.transpose(0, 1).transpose(0, 1)


class KeepsTheLayout(Block):
    """The states reach a product as they lie in memory."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Leave the norm out, which would lay them out anew."""
        gate, up = self.up(torch.tanh(x) * (1 + scale)).chunk(2, dim=-1)
        return x + self.down(torch.cat([torch.nn.functional.silu(gate) * up, up], dim=-1))


class ChangesTheMode(Block):
    """A part is computed in another precision."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Compute the block under autocast."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x, scale).float()


class Draws(Block):
    """Random numbers are added."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Add some noise."""
        return super().forward(x, scale) + 0.1 * torch.rand_like(x)


class Stack(nn.Module):
    """Four blocks behind a projection."""

    def __init__(
        self, kind: type[Block] = Block, between: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        super().__init__()
        self.enter, self.time = nn.Linear(WIDTH, WIDTH), nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList([kind() for _ in range(4)])
        self._between = between

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Map states [B, N, WIDTH] at times [B, 1, 1] to such states."""
        x, scale = self.enter(x), self.time(t)
        for block in self.blocks:
            x = block(x, scale)
            if self._between is not None:
                x = self._between(x)
        return x


class Transposed(Stack):
    """States that lie channel by channel, as behind a convolution, also in front of products."""

    def __init__(self) -> None:
        super().__init__(KeepsTheLayout)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Map states [B, N, WIDTH] at times [B, 1, 1] to such states."""
        laid = x.transpose(1, 2).contiguous().transpose(1, 2)
        scale = self.time(t)
        for block in self.blocks:
            laid = block(laid, scale)
        return laid
