"""Trunks with more than one kind of token, or with one set of weights: latents, two-way residuals, recursion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.foreign import F32, PlainBlock, SelfAttention, waves
from tests.models.tiny import Draw, TinyModel, seeded

FEATURES = 6


class CrossAttention(nn.Module):
    """Queries of one set of tokens, keys and values of another."""

    def __init__(self, width: int, others: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_others = nn.LayerNorm(width), nn.LayerNorm(others)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(others, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, others: Tensor) -> Tensor:
        q = self.q(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(self.norm_others(others)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Sequential):
    """Norm and two linear layers."""

    def __init__(self, width: int, factor: int = 2) -> None:
        inner = factor * width
        super().__init__(nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


class InterfaceBlock(nn.Module):
    """Latents read the tokens, compute among themselves, and write back (RIN, arXiv 2212.11972)."""

    def __init__(self, width: int, latent_width: int, computations: int = 2) -> None:
        super().__init__()
        self.read, self.read_mlp = CrossAttention(latent_width, width), FeedForward(latent_width)
        self.compute = nn.ModuleList(PlainBlock(latent_width, 2, merges=False) for _ in range(computations))
        self.write, self.write_mlp = CrossAttention(width, latent_width), FeedForward(width)

    def forward(self, latents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        latents = latents + self.read(latents, tokens)
        latents = latents + self.read_mlp(latents)
        for layer in self.compute:
            latents = layer(latents)
        tokens = tokens + self.write(tokens, latents)
        return latents, tokens + self.write_mlp(tokens)


class InterfaceNetwork(nn.Module):
    """Recurrent interface network: a few learned latents and the time do the work, the tokens are read and written."""

    def __init__(self, layers: int, width: int = 24, latent_width: int = 32, latents: int = 8) -> None:
        super().__init__()
        self.width = width
        self.latents = nn.Parameter(torch.randn(1, latents, latent_width))
        self.time, self.embed = nn.Linear(48, latent_width), nn.Linear(FEATURES, width)
        self.blocks = nn.ModuleList(InterfaceBlock(width, latent_width) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, FEATURES))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        tokens = self.embed(x) + waves(torch.arange(x.shape[1], device=x.device), self.width).to(x.dtype)
        time = self.time(waves(t, 48).to(x.dtype))[:, None]
        latents = torch.cat([self.latents.expand(len(x), -1, -1), time], 1)
        for block in self.blocks:
            latents, tokens = block(latents, tokens)
        return self.head(tokens)


class Perceiver(nn.Module):
    """Latents read the input once, self-attention works on them, queries read them out (arXiv 2107.14795)."""

    def __init__(self, layers: int, width: int = 24, latent_width: int = 32, latents: int = 8) -> None:
        super().__init__()
        self.width = width
        self.latents = nn.Parameter(torch.randn(1, latents, latent_width))
        self.time, self.embed = nn.Linear(48, latent_width), nn.Linear(FEATURES, width)
        self.encode, self.decode = CrossAttention(latent_width, width), CrossAttention(width, latent_width)
        self.process = nn.ModuleList(PlainBlock(latent_width, 2, merges=False) for _ in range(layers))
        self.head = nn.Linear(width, FEATURES)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        tokens = self.embed(x) + waves(torch.arange(x.shape[1], device=x.device), self.width).to(x.dtype)
        latents = self.latents + self.time(waves(t, 48).to(x.dtype))[:, None]
        latents = latents + self.encode(latents, tokens)
        for layer in self.process:
            latents = layer(latents)
        return self.head(tokens + self.decode(tokens, latents))


class ReversibleBlock(nn.Module):
    """Each half is added to from what the other one shows (arXiv 1707.04585)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.f_norm, self.f = nn.LayerNorm(width), SelfAttention(width, heads)
        self.g = FeedForward(width)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = x1 + self.f(self.f_norm(x2))
        return y1, x2 + self.g(y1)


class Reversible(nn.Module):
    """Two residual streams of equal shape, joined at the end."""

    def __init__(self, layers: int, width: int = 24, heads: int = 2) -> None:
        super().__init__()
        self.embed, self.time = nn.Linear(FEATURES, width), nn.Linear(48, width)
        self.layers = nn.ModuleList(ReversibleBlock(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, FEATURES)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.embed(x) + self.time(waves(t, 48).to(x.dtype))[:, None]
        x1, x2 = h, h
        for layer in self.layers:
            x1, x2 = layer(x1, x2)
        return self.head((x1 + x2) / 2)


class Universal(nn.Module):
    """One block, called again and again on its own result plus an embedding of the depth (arXiv 1807.03819)."""

    def __init__(self, layers: int, width: int = 24, heads: int = 2) -> None:
        super().__init__()
        self.depth = nn.Embedding(layers, width)
        self.embed, self.time = nn.Linear(FEATURES, width), nn.Linear(48, width)
        self.block = PlainBlock(width, heads, merges=False)
        self.head = nn.Linear(width, FEATURES)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.embed(x) + self.time(waves(t, 48).to(x.dtype))[:, None]
        for row in self.depth.weight:
            h = self.block(h + row)
        return self.head(h)


class Shared(nn.Module):
    """A list that holds one and the same block several times."""

    def __init__(self, layers: int, width: int = 24, heads: int = 2) -> None:
        super().__init__()
        self.embed, self.time = nn.Linear(FEATURES, width), nn.Linear(48, width)
        self.blocks = nn.ModuleList([PlainBlock(width, heads, merges=False)] * layers)
        self.head = nn.Linear(width, FEATURES)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.embed(x) + self.time(waves(t, 48).to(x.dtype))[:, None]
        for block in self.blocks:
            h = block(h)
        return self.head(h)


class LowRank(nn.Module):
    """What one depth adds to a shared linear layer."""

    def __init__(self, width: int, out: int, rank: int = 2) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class Recursive(nn.Module):
    """Attention and MLP shared by all depths, each with a low-rank term of its depth (arXiv 2410.20672)."""

    def __init__(self, layers: int, width: int = 24, heads: int = 2) -> None:
        super().__init__()
        self.embed, self.time = nn.Linear(FEATURES, width), nn.Linear(48, width)
        self.norm, self.attention, self.mlp = nn.LayerNorm(width), SelfAttention(width, heads), FeedForward(width)
        self.adapters = nn.ModuleList(LowRank(width, width) for _ in range(layers))
        self.head = nn.Linear(width, FEATURES)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.embed(x) + self.time(waves(t, 48).to(x.dtype))[:, None]
        for adapter in self.adapters:
            normed = self.norm(h)
            h = h + self.attention(normed) + adapter(normed)
            h = h + self.mlp(h)
        return self.head(h)


class TorchEncoder(nn.Module):
    """The encoder of torch itself: without gradients every layer is one operator."""

    def __init__(self, layers: int, width: int = 24, heads: int = 2) -> None:
        super().__init__()
        self.embed, self.time = nn.Linear(FEATURES, width), nn.Linear(48, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, FEATURES)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x) + self.time(waves(t, 48).to(x.dtype))[:, None]))


def _on_tokens(build: Callable[[int], nn.Module], stack: str) -> Callable[..., TinyModel]:
    """Builder of a denoiser of tokens that is called as `(x, t)`."""

    def builder(layers: int = 4, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
        def make(draw: Draw) -> dict[str, Any]:
            return {"x": draw.latents(draw.batch, draw.tokens, FEATURES), "t": draw.time()}

        module = seeded(lambda: build(layers), seed, dtype)
        return TinyModel(module, make, ((stack, layers),), ("x", "t"), dtype)

    return builder


LATENTS: dict[str, Callable[..., TinyModel]] = {
    "interface_network": _on_tokens(InterfaceNetwork, "blocks"),
    "perceiver": _on_tokens(Perceiver, "process"),
    "reversible": _on_tokens(Reversible, "layers"),
    "universal": _on_tokens(Universal, "block"),
    "shared": _on_tokens(Shared, "blocks"),
    "recursive": _on_tokens(Recursive, "adapters"),
    "torch_encoder": _on_tokens(TorchEncoder, "encoder.layers"),
}
"""Builders, by name."""
