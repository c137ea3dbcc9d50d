"""Other insides of a block: experts, parallel branches, linear attention, recurrence; other places of the norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.foreign import F32, SelfAttention, waves
from tests.models.tiny import Draw, TinyModel, seeded

FEATURES, WIDTH, HEADS = 6, 24, 2


class Experts(nn.Module):
    """Every expert sees every token; the router's two largest weights per token decide what of it is added."""

    def __init__(self, experts: int = 4, inner: int = 32) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, experts)
        self.up = nn.Parameter(torch.randn(experts, WIDTH, inner) * WIDTH**-0.5)
        self.down = nn.Parameter(torch.randn(experts, inner, WIDTH) * inner**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        gates = torch.zeros(*x.shape[:-1], self.router.out_features, dtype=x.dtype, device=x.device)
        gates = gates.scatter(-1, chosen, weights / weights.sum(-1, keepdim=True))
        inner = F.silu(torch.einsum("bnd,edf->benf", x, self.up))
        return torch.einsum("benf,efd,bne->bnd", inner, self.down, gates)


class ExpertBlock(nn.Module):
    """Attention, then a mixture of experts (DiT-MoE, arXiv 2407.11633, all experts computed)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.experts = SelfAttention(WIDTH, HEADS), Experts()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x) + c)
        return x + self.experts(self.norm2(x))


class ParallelBlock(nn.Module):
    """Attention and MLP read the same norm and are added at once, scaled down (GPT-J)."""

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.scale, self.norm, self.attention = scale, nn.LayerNorm(WIDTH), SelfAttention(WIDTH, HEADS)
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        normed = self.norm(x) + c
        return x + self.scale * (self.attention(normed) + self.down(F.gelu(self.up(normed))))


class ScaledBlock(nn.Module):
    """The stream itself is scaled, so that its variance stays: no identity path."""

    def __init__(self, share: float = 0.3) -> None:
        super().__init__()
        self.share, self.block = share, ParallelBlock()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        keep, add = (1 - self.share) ** 0.5, self.share**0.5
        return keep * x + add * self.block(x, c)


class LinearAttentionBlock(nn.Module):
    """Attention without softmax, keys and values summed first; sizes split and merged all the time (SANA)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mix = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=4)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm(x) + c).reshape(batch, length, 3, HEADS, width // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 4, 1).reshape(3, batch * HEADS, width // HEADS, length)
        q, k = F.relu(q) + 1e-3, F.relu(k) + 1e-3
        summed = v @ k.transpose(1, 2)
        out = (summed @ q) / (k.sum(-1, keepdim=True) * q).sum(1, keepdim=True)
        out = out.reshape(batch, HEADS, width // HEADS, length).permute(0, 3, 1, 2).reshape(batch, length, width)
        x = x + self.out(out)
        return x + self.mix(x.transpose(1, 2)).transpose(1, 2)


class GatedRecurrentBlock(nn.Module):
    """A linear recurrence over the tokens with gates that depend on them, by its doubling form (Mamba-like)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inward = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=2, groups=WIDTH)
        self.outward = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        value, gate, decay = self.inward(self.norm(x) + c).chunk(3, -1)
        value = F.silu(self.conv(value.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        keep, state, reach = torch.sigmoid(decay + 2), value, 1
        state = (1 - keep) * state
        while reach < 32:  # more than the tokens of any call
            state = state + keep * F.pad(state, (0, 0, reach, 0))[:, : x.shape[1]]
            keep = keep * F.pad(keep, (0, 0, reach, 0))[:, : x.shape[1]]
            reach *= 2
        return x + self.outward(state * F.silu(gate))


class PostNormBlock(nn.Module):
    """The norm comes behind the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm1, self.norm2 = SelfAttention(WIDTH, HEADS), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x + c))
        return self.norm2(x + self.down(F.relu(self.up(x))))


class SandwichBlock(nn.Module):
    """Norms in front of and behind every branch; the stream itself is never rescaled."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.up, self.down = SelfAttention(WIDTH, HEADS), nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)
        self.norms = nn.ModuleDict({name: nn.RMSNorm(WIDTH) for name in ("before", "behind", "again", "last")})

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = x + self.norms["behind"](self.attention(self.norms["before"](x) * (1 + c)))
        return x + self.norms["last"](self.down(F.gelu(self.up(self.norms["again"](x)))))


class Denoiser(nn.Module):
    """Tokens through blocks that take `(x, condition)`."""

    def __init__(self, block: Callable[[], nn.Module], layers: int) -> None:
        super().__init__()
        self.embed, self.time = nn.Linear(FEATURES, WIDTH), nn.Linear(48, WIDTH)
        self.h = nn.ModuleList(block() for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, FEATURES)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x, c = self.embed(x), self.time(waves(t, 48).to(x.dtype))[:, None]
        for block in self.h:
            x = block(x, c)
        return self.head(self.norm(x))


def _builder(block: Callable[[], nn.Module]) -> Callable[..., TinyModel]:
    def builder(layers: int = 4, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
        def make(draw: Draw) -> dict[str, Any]:
            return {"x": draw.latents(draw.batch, draw.tokens, FEATURES), "t": draw.time()}

        module = seeded(lambda: Denoiser(block, layers), seed, dtype)
        return TinyModel(module, make, (("h", layers),), ("x", "t"), dtype)

    return builder


MIXERS: dict[str, Callable[..., TinyModel]] = {
    "experts": _builder(ExpertBlock),
    "parallel": _builder(ParallelBlock),
    "scaled": _builder(ScaledBlock),
    "linear_attention": _builder(LinearAttentionBlock),
    "gated_recurrent": _builder(GatedRecurrentBlock),
    "post_norm": _builder(PostNormBlock),
    "sandwich": _builder(SandwichBlock),
}
"""Builders, by name."""
