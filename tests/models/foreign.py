"""Transformers written in other styles than those of diffusers: other call conventions, other block structures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.tiny import Draw, TinyModel, seeded

F32 = torch.float32


def waves(positions: Tensor, width: int) -> Tensor:
    """Sinusoids of `positions` in `width` columns."""
    frequencies = torch.exp(torch.arange(width // 2, device=positions.device) * (-math.log(1e4) * 2 / width))
    angles = positions.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


class SelfAttention(nn.Module):
    """Multi-head self attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width))


class AdaptiveBlock(nn.Module):
    """Pre-norm block with shift, scale and gate; takes and returns the pair (tokens, condition)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, c = pair
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, -1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        x = x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return x, c


class SequentialDiT(nn.Module):
    """Class-conditional picture transformer: `forward(x, t, y)`, blocks run by `nn.Sequential` on a tuple."""

    def __init__(self, layers: int, width: int = 24, heads: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.width = width
        self.patchify = nn.Conv2d(4, width, 2, 2)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Embedding(classes, width)
        self.blocks = nn.Sequential(*[AdaptiveBlock(width, heads) for _ in range(layers)])
        self.head = nn.Linear(width, 16)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        patches = self.patchify(x)
        batch, _, rows, cols = patches.shape
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = tokens + waves(torch.arange(rows * cols, device=x.device), self.width).to(x.dtype)
        c = self.time(waves(t, 64).to(x.dtype)) + self.classes(y)
        tokens, _ = self.blocks((tokens, c))
        return F.pixel_shuffle(self.head(tokens).transpose(1, 2).reshape(batch, 16, rows, cols), 2)


class PostNormBlock(nn.Module):
    """Normalisation after each sum, so that the residual stream is rescaled by every block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.norm_attention = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm_mlp = nn.LayerNorm(width)

    def forward(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.norm_attention(state["tokens"] + self.attention(state["tokens"] + state["signal"]))
        return {**state, "tokens": self.norm_mlp(x + self.down(F.relu(self.up(x))))}


class PostNormEncoder(nn.Module):
    """Token denoiser whose arguments and results are dictionaries; text joins the sequence as a prefix."""

    def __init__(self, layers: int, width: int = 32, heads: int = 2, features: int = 6, text: int = 20) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.ModuleDict({"data": nn.Linear(features, width), "text": nn.Linear(text, width)})
        self.time = nn.Linear(48, width)
        self.encoder = nn.ModuleList(PostNormBlock(width, heads) for _ in range(layers))
        self.readout = nn.Linear(width, features)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        data, text = batch["noisy"]["data"], batch["cond"]["text"]
        tokens = torch.cat([self.embed["text"](text), self.embed["data"](data)], 1)
        tokens = tokens + waves(torch.arange(tokens.shape[1], device=data.device), self.width).to(data.dtype)
        state = {"tokens": tokens, "signal": self.time(waves(batch["noisy"]["time"], 48).to(data.dtype))[:, None]}
        for block in self.encoder:
            state = block(state)
        tokens = state["tokens"][:, text.shape[1] :]
        return {"prediction": self.readout(tokens), "tokens": tokens}


class PlainBlock(nn.Module):
    """Pre-norm block; in the second half of a U-shaped model it first merges a skip connection."""

    def __init__(self, width: int, heads: int, merges: bool) -> None:
        super().__init__()
        self.merge = nn.Linear(2 * width, width) if merges else None
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.merge is not None and skip is not None:
            x = self.merge(torch.cat([x, skip], -1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UShaped(nn.Module):
    """Long skip connections from the first to the second half; time and class are tokens; blocks called by index."""

    def __init__(self, layers: int, width: int = 24, heads: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.width, self.half = width, layers // 2
        self.patchify = nn.Conv2d(4, width, 2, 2)
        self.time, self.label = nn.Linear(64, width), nn.Embedding(classes, width)
        self.blocks = nn.ModuleList(PlainBlock(width, heads, merges=i >= layers - self.half) for i in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 16)

    def forward(self, x: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        patches = self.patchify(x)
        batch, _, rows, cols = patches.shape
        extra = [self.time(waves(timesteps, 64).to(x.dtype))[:, None]]
        if labels is not None:
            extra.append(self.label(labels)[:, None])
        h = torch.cat([*extra, patches.flatten(2).transpose(1, 2)], 1)
        h = h + waves(torch.arange(h.shape[1], device=x.device), self.width).to(x.dtype)
        skips: list[Tensor] = []
        for i in range(len(self.blocks)):
            if i < self.half:
                h = self.blocks[i](h)
                skips.append(h)
            else:
                h = self.blocks[i](h, skips.pop() if i >= len(self.blocks) - self.half else None)
        h = self.head(self.norm(h))[:, len(extra) :]
        return F.pixel_shuffle(h.transpose(1, 2).reshape(batch, 16, rows, cols), 2)


class Perceptron(nn.Module):
    """No repeated block at all: nothing in it may be cached."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, width), nn.Linear(width, 2 * width)
        self.time, self.last = nn.Linear(32, 2 * width), nn.Linear(2 * width, 6)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        h = F.silu(self.first(sample))
        h = F.silu(self.second(h) + self.time(waves(timestep, 32).to(sample.dtype))[:, None])
        return self.last(h)


class Tied(nn.Module):
    """One block with one set of weights, called `layers` times in a loop."""

    def __init__(self, layers: int, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.layers = layers
        self.embed, self.readout = nn.Linear(6, width), nn.Linear(width, 6)
        self.time = nn.Linear(32, width)
        self.cond = nn.Linear(20, width)
        self.block = AdaptiveBlock(width, heads)

    def forward(self, sample: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        c = self.time(waves(timestep, 32).to(sample.dtype)) + self.cond(cond)
        h = self.embed(sample)
        for _ in range(self.layers):
            h, c = self.block((h, c))
        return self.readout(h)


class Stacked(nn.Module):
    """All layers in stacked parameters and a loop of function calls: no block is a module of its own."""

    def __init__(self, layers: int, width: int = 24) -> None:
        super().__init__()
        self.layers, self.heads = layers, 3
        self.embed, self.readout = nn.Linear(6, width), nn.Linear(width, 6)
        self.time = nn.Linear(32, width)
        scale = width**-0.5
        self.qkv = nn.Parameter(torch.randn(layers, width, 3 * width) * scale)
        self.out = nn.Parameter(torch.randn(layers, width, width) * scale)
        self.up = nn.Parameter(torch.randn(layers, width, 2 * width) * scale)
        self.down = nn.Parameter(torch.randn(layers, 2 * width, width) * scale)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        h = self.embed(sample) + self.time(waves(timestep, 32).to(sample.dtype))[:, None]
        batch, length, width = h.shape
        for i in range(self.layers):
            qkv = F.layer_norm(h, (width,)) @ self.qkv[i]
            q, k, v = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
            h = h + a @ self.out[i]
            h = h + F.gelu(F.layer_norm(h, (width,)) @ self.up[i]) @ self.down[i]
        return self.readout(h)


def sequential_dit(layers: int = 4, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
    """Blocks in `nn.Sequential`, called positionally as `(x, t, y)`."""

    def make(draw: Draw) -> dict[str, Any]:
        x = draw.latents(draw.batch, 4, 2 * draw.rows, 2 * draw.cols)
        return {"x": x, "t": draw.time(), "y": draw.labels(10)}

    module = seeded(lambda: SequentialDiT(layers), seed, dtype)
    return TinyModel(module, make, (("blocks", layers),), ("x", "t"), dtype, positional=True)


def postnorm_encoder(layers: int = 4, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
    """Dictionaries in and out, post-norm blocks."""

    def make(draw: Draw) -> dict[str, Any]:
        noisy = {"data": draw.latents(draw.batch, draw.tokens, 6), "time": draw.time(1.0)}
        return {"batch": {"noisy": noisy, "cond": {"text": draw.content(draw.batch, 7, 20)}}}

    module = seeded(lambda: PostNormEncoder(layers), seed, dtype)
    return TinyModel(module, make, (("encoder", layers),), ("data", "time"), dtype)


def u_shaped(layers: int = 5, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
    """Long skip connections; the blocks are of two kinds in one list."""

    def make(draw: Draw) -> dict[str, Any]:
        x = draw.latents(draw.batch, 4, 2 * draw.rows, 2 * draw.cols)
        return {"x": x, "timesteps": draw.time(), "labels": draw.labels(10)}

    module = seeded(lambda: UShaped(layers), seed, dtype)
    return TinyModel(module, make, (("blocks", layers),), ("x", "timesteps"), dtype)


def perceptron(layers: int = 0, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
    """No repeated block; `layers` has no meaning here."""

    def make(draw: Draw) -> dict[str, Any]:
        return {"sample": draw.latents(draw.batch, draw.tokens, 6), "timestep": draw.time()}

    return TinyModel(seeded(Perceptron, seed, dtype), make, (), ("sample", "timestep"), dtype)


def tied(layers: int = 4, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
    """The same block called `layers` times."""

    def make(draw: Draw) -> dict[str, Any]:
        sample = draw.latents(draw.batch, draw.tokens, 6)
        return {"sample": sample, "timestep": draw.time(), "cond": draw.content(draw.batch, 20)}

    module = seeded(lambda: Tied(layers), seed, dtype)
    return TinyModel(module, make, (("block", layers),), ("sample", "timestep"), dtype)


def stacked(layers: int = 4, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
    """Layers without modules of their own; no conditioning input either."""

    def make(draw: Draw) -> dict[str, Any]:
        return {"sample": draw.latents(draw.batch, draw.tokens, 6), "timestep": draw.time()}

    return TinyModel(seeded(lambda: Stacked(layers), seed, dtype), make, (), ("sample", "timestep"), dtype)


FOREIGN: dict[str, Callable[..., TinyModel]] = {
    "sequential_dit": sequential_dit,
    "postnorm_encoder": postnorm_encoder,
    "u_shaped": u_shaped,
    "perceptron": perceptron,
    "tied": tied,
    "stacked": stacked,
}
"""Builders of the models that are not from diffusers."""
