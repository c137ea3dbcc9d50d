"""A transformer cut open: prefix, blocks and suffix can be called one by one, as the oracle needs it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Streams = tuple[Tensor, ...]


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, tokens: Tensor, others: Tensor) -> Tensor:
        split = [
            linear(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, source in ((self.query, tokens), (self.key, others), (self.value, others))
        ]
        return self.out(functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(-2))


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(tokens), approximate="tanh"))


class Block(nn.Module):
    """Image tokens that read the text, which stays as it is."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.LayerNorm(dim) for _ in range(3))
        self.own, self.cross, self.mlp = Attention(dim), Attention(dim), Mlp(dim)
        self.modulation = nn.Linear(dim, 2 * dim)

    def forward(self, tokens: Tensor, text: Tensor, time: Tensor) -> Tensor:
        scale, gate = self.modulation(time).unsqueeze(1).chunk(2, dim=-1)
        normed = self.first(tokens) * (1 + scale)
        tokens = tokens + gate.tanh() * self.own(normed, normed)
        tokens = tokens + self.cross(self.second(tokens), text)
        return tokens + self.mlp(self.third(tokens))


class JointBlock(nn.Module):
    """Image tokens and text that both change, in one attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.text_norm, self.second, self.text_second = (nn.LayerNorm(dim) for _ in range(4))
        self.attention, self.text_attention = Attention(dim), Attention(dim)
        self.mlp, self.text_mlp = Mlp(dim), Mlp(dim)
        self.modulation = nn.Linear(dim, 2 * dim)

    def forward(self, tokens: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        scale, gate = self.modulation(time).unsqueeze(1).chunk(2, dim=-1)
        normed, text_normed = self.norm(tokens) * (1 + scale), self.text_norm(text)
        both = torch.cat([text_normed, normed], dim=1)
        tokens = tokens + gate.tanh() * self.attention(normed, both)
        text = text + self.text_attention(text_normed, both)
        return tokens + self.mlp(self.second(tokens)), text + self.text_mlp(self.text_second(text))


class TinyTrunk(nn.Module):
    """Denoiser of tokens [batch, length, dim] at times [batch] under text [batch, words, dim], in its own dtype.

    With `two_streams` the blocks change the text as well, otherwise it is the same for all of them.
    """

    def __init__(self, dim: int = 16, blocks: int = 4, two_streams: bool = False) -> None:
        super().__init__()
        self.dim, self.two_streams = dim, two_streams
        self.embed, self.read_text, self.time = (nn.Linear(dim, dim) for _ in range(3))
        self.blocks = nn.ModuleList((JointBlock if two_streams else Block)(dim) for _ in range(blocks))
        self.norm, self.project = nn.LayerNorm(dim), nn.Linear(dim, dim)

    def prefix(self, x: Tensor, t: Tensor, c: Tensor) -> tuple[Streams, Streams]:
        """Return what the blocks change, and what they only read."""
        dtype = self.embed.weight.dtype
        frequencies = torch.arange(1, self.dim // 2 + 1, device=t.device, dtype=torch.float32)
        angles = t.float().unsqueeze(-1) * frequencies
        time = functional.silu(self.time(torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)))
        tokens, text = self.embed(x.to(dtype)), self.read_text(c.to(dtype))
        return ((tokens, text), (time,)) if self.two_streams else ((tokens,), (text, time))

    def block(self, index: int, changing: Streams, fixed: Streams) -> Streams:
        """Run one block."""
        result = self.blocks[index](*changing, *fixed)
        return result if self.two_streams else (result,)

    def suffix(self, changing: Streams, fixed: Streams, x: Tensor) -> Tensor:
        return self.project(self.norm(changing[0]) * (1 + fixed[-1].unsqueeze(1))).to(x.dtype)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        changing, fixed = self.prefix(x, t, c)
        for index in range(len(self.blocks)):
            changing = self.block(index, changing, fixed)
        return self.suffix(changing, fixed, x)


def tiny_trunk(two_streams: bool = False, blocks: int = 4, dim: int = 16, seed: int = 0) -> TinyTrunk:
    """Build a seeded trunk whose blocks matter about equally."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyTrunk(dim, blocks, two_streams).eval().requires_grad_(False)
