"""The trained digits model with half of its blocks: what is told of it does not depend on how well it draws."""

from typing import Any

from torch import nn

from benchmarks.comparison.models import BLOCK_LISTS, Digits

BLOCKS = 6


class SmallDigits(Digits):
    """Three double and three single blocks, with the trained weights; quicker to trace than all twelve."""

    def load(self, device: str) -> Any:
        pipe = super().load(device)
        for name in BLOCK_LISTS:
            blocks: nn.ModuleList = getattr(pipe.transformer, name)
            setattr(pipe.transformer, name, blocks[: BLOCKS // len(BLOCK_LISTS)])
        return pipe
