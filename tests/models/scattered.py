"""Models in which something depends on the data: the length of the text, or the way through the blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.models.tiny_trunk import JointBlock, Streams, TinyTrunk


class WordsFirst(JointBlock):
    """One attention over both streams, cut apart behind it."""

    def forward(self, tokens: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        scale, gate = self.modulation(time).unsqueeze(1).chunk(2, dim=-1)
        both = torch.cat([self.norm(tokens) * (1 + scale), self.text_norm(text)], dim=1)
        read = self.attention(both, both)
        tokens = tokens + gate.tanh() * read[:, : tokens.shape[1]]
        text = text + self.text_attention.out(read[:, tokens.shape[1] :])
        return tokens + self.mlp(self.second(tokens)), text + self.text_mlp(self.text_second(text))


class MaskedText(TinyTrunk):
    """Reads only as many words of its text as have a first channel above zero in the first of the batch."""

    def __init__(self, dim: int = 16, blocks: int = 4) -> None:
        super().__init__(dim, blocks, two_streams=True)
        self.blocks = nn.ModuleList(WordsFirst(dim) for _ in range(blocks))

    def prefix(self, x: Tensor, t: Tensor, c: Tensor) -> tuple[Streams, Streams]:
        words = int((c[0, :, 0] > 0).sum())
        return super().prefix(x, t, c[:, :words])
