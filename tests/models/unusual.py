"""Transformers whose blocks do not simply run one after the other, each once: what runs is a walk over the blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.models.tiny_trunk import Block, Mlp, Streams, TinyTrunk


class Short(nn.Module):
    """A block of another kind: no attention of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.mlp, self.mix = nn.LayerNorm(dim), Mlp(dim), nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, text: Tensor, time: Tensor) -> Tensor:
        return tokens + self.mlp(self.norm(tokens) + self.mix(time).unsqueeze(1))


class Nest(nn.Module):
    """A block made of blocks."""

    def __init__(self, dim: int, parts: int = 2) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Short(dim) for _ in range(parts))

    def forward(self, tokens: Tensor, text: Tensor, time: Tensor) -> Tensor:
        for part in self.parts:
            tokens = part(tokens, text, time)
        return tokens


class Walk(TinyTrunk):
    """A trunk that says for itself which blocks run, and in which order."""

    def __init__(self, dim: int = 16, blocks: int = 4, kind: Callable[[int], nn.Module] = Block) -> None:
        super().__init__(dim, blocks)
        self.blocks = nn.ModuleList(kind(dim) for _ in range(blocks))

    def walk(self, left_out: Sequence[int] = ()) -> list[nn.Module]:
        """The blocks in the order in which they run, without the numbers in `left_out`."""
        return [block for number, block in enumerate(self.blocks) if number not in left_out]

    def forward(self, x: Tensor, t: Tensor, c: Tensor, left_out: Sequence[int] = ()) -> Tensor:
        changing, fixed = self.prefix(x, t, c)
        for block in self.walk(left_out):
            changing = (block(*changing, *fixed),)
        return self.suffix(changing, fixed, x)


class Interleaved(Walk):
    """Two lists whose blocks take turns."""

    def __init__(self) -> None:
        super().__init__()
        self.others = nn.ModuleList(Short(self.dim) for _ in range(4))

    def walk(self, left_out: Sequence[int] = ()) -> list[nn.Module]:
        return [block for pair in zip(self.blocks, self.others, strict=True) for block in pair]


class Nested(Walk):
    """Every block has a list of blocks of its own."""

    def __init__(self) -> None:
        super().__init__(kind=Nest)


class NestedOnce(Walk):
    """Two blocks, which are too few, with a list of three each."""

    def __init__(self) -> None:
        super().__init__(blocks=2, kind=lambda dim: Nest(dim, 3))


class Twice(Walk):
    """The whole list runs two times in one call."""

    def walk(self, left_out: Sequence[int] = ()) -> list[nn.Module]:
        return [*self.blocks, *self.blocks]


class Backwards(Walk):
    """The last block of the list runs first."""

    def walk(self, left_out: Sequence[int] = ()) -> list[nn.Module]:
        return list(reversed(self.blocks))


class ThereAndBack(Walk):
    """The list runs forwards, then without its last block backwards."""

    def walk(self, left_out: Sequence[int] = ()) -> list[nn.Module]:
        return [*self.blocks, *reversed(self.blocks[:-1])]


class Cycled(Walk):
    """Two blocks that take turns, three times each."""

    def __init__(self) -> None:
        super().__init__(blocks=2)

    def walk(self, left_out: Sequence[int] = ()) -> list[nn.Module]:
        return [*self.blocks] * 3


class Tied(Walk):
    """One block, four times in the list."""

    def __init__(self) -> None:
        super().__init__(blocks=1)
        self.blocks = nn.ModuleList([self.blocks[0]] * 4)


class Again(Walk):
    """One block that is called five times, and stands in no list."""

    def __init__(self) -> None:
        super().__init__(blocks=1)
        self.only = self.blocks[0]
        del self.blocks

    def walk(self, left_out: Sequence[int] = ()) -> list[nn.Module]:
        return [self.only] * 5


WALKS: tuple[type[Walk], ...] = (
    Interleaved,
    Nested,
    NestedOnce,
    Twice,
    Backwards,
    ThereAndBack,
    Cycled,
    Tied,
    Again,
)


def seeded(cls: type[Walk]) -> Walk:
    """Build the same model at every call."""
    torch.manual_seed(0)
    return cls().eval().requires_grad_(False)


@dataclass
class Steps:
    """A walk, cut open for the oracle: one block per step, and so many of them before the first cut."""

    model: Walk
    left_out: tuple[int, ...] = ()
    together: int = 1
    """Steps that count as one block."""
    parts: bool = False
    """Whether the blocks inside of the blocks are the steps."""

    def __post_init__(self) -> None:
        walk = self.model.walk(self.left_out)
        if self.parts:
            walk = [part for block in walk for part in block.parts]  # type: ignore[union-attr]
        self.blocks = [walk[start : start + self.together] for start in range(0, len(walk), self.together)]
        self.prefix, self.suffix = self.model.prefix, self.model.suffix

    def block(self, index: int, changing: Streams, fixed: Streams) -> Streams:
        for block in self.blocks[index]:
            changing = (block(*changing, *fixed),)
        return changing
