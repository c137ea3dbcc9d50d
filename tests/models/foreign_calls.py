"""Ways to call blocks: one after the other in a container, in every kind of loop, by name; any container in and out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.foreign import F32, PlainBlock, SelfAttention, waves
from tests.models.tiny import Draw, TinyModel, seeded

FEATURES, WIDTH = 6, 24


def plain_block() -> PlainBlock:
    return PlainBlock(WIDTH, 2, merges=False)


class Ends(nn.Module):
    """First and last layer of a denoiser of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.time = nn.Linear(FEATURES, WIDTH), nn.Linear(48, WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, FEATURES)

    def begin(self, x: Tensor, t: Tensor) -> Tensor:
        return self.embed(x) + self.time(waves(t, 48).to(x.dtype))[:, None]

    def end(self, h: Tensor) -> Tensor:
        return self.head(self.norm(h))


class InSequential(Ends):
    """The trunk is one `nn.Sequential`."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(plain_block() for _ in range(layers)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.end(self.trunk(self.begin(x, t)))


class WholeInSequential(nn.Module):
    """Even the first and the last layer are elements of the one container."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        blocks = [plain_block() for _ in range(layers)]
        self.net = nn.Sequential(nn.Linear(FEATURES + 1, WIDTH), *blocks, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 6))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = (t / 1000).to(x.dtype)[:, None, None].expand(*x.shape[:2], 1)
        return self.net(torch.cat([x, time], -1))


class InWhile(Ends):
    """Blocks by index in a `while` loop."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(plain_block() for _ in range(layers))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, i = self.begin(x, t), 0
        while i < len(self.stages):
            h = self.stages[i](h)
            i += 1
        return self.end(h)


class InDictionary(Ends):
    """Blocks in an `nn.ModuleDict`, whose keys are words and numbers."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({f"layer_{i}": plain_block() for i in range(layers)})

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.begin(x, t)
        for name in self.parts:
            h = self.parts[name](h)
        return self.end(h)


class ByWords(Ends):
    """Blocks in an `nn.ModuleDict` whose keys have no number at all."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"abcdefghijkl"[i] * 2: plain_block() for i in range(layers)})

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.begin(x, t)
        for part in self.parts.values():
            h = part(h)
        return self.end(h)


class ByAttribute(Ends):
    """Blocks that are attributes, set and read by name."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = layers
        for i in range(layers):
            setattr(self, f"block_{i}", plain_block())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.begin(x, t)
        for i in range(self.layers):
            h = getattr(self, f"block_{i}")(h)
        return self.end(h)


class Pairs(Ends):
    """Every layer is a list of two parts, attention and MLP; the sums stand in the loop of the trunk."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        mlp = lambda: nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))  # noqa: E731
        attention = lambda: nn.Sequential(nn.LayerNorm(WIDTH), SelfAttention(WIDTH, 2))  # noqa: E731
        self.layers = nn.ModuleList(nn.ModuleList([attention(), mlp()]) for _ in range(layers))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.begin(x, t)
        for attention, mlp in self.layers:
            h = attention(h) + h
            h = mlp(h) + h
        return self.end(h)


class Nested(nn.Module):
    """A block that holds the next one: every block calls its successor."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.block = plain_block()
        self.rest = Nested(layers - 1) if layers > 1 else None

    def forward(self, h: Tensor) -> Tensor:
        h = self.block(h)
        return h if self.rest is None else self.rest(h)


class Chained(Ends):
    """A linked list of blocks."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.first = Nested(layers)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.end(self.first(self.begin(x, t)))


@dataclass
class Prediction:
    """What the model says about its input."""

    noise: Tensor
    features: Tensor


class Containers(Ends):
    """A dictionary in, a dataclass out."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(plain_block() for _ in range(layers))

    def forward(self, batch: dict[str, Any]) -> Prediction:
        h = self.begin(batch["x"], batch["t"])
        for block in self.encoder:
            h = block(h)
        return Prediction(noise=self.end(h), features=h)


class Functional(nn.Module):
    """Weights in an `nn.ParameterDict` under names of layers; the model is functions of them."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = layers
        shapes = {"qkv": (WIDTH, 72), "out": (WIDTH, WIDTH), "up": (WIDTH, 48), "down": (48, WIDTH)}
        ends = {"embed": (FEATURES, WIDTH), "time": (48, WIDTH), "head": (WIDTH, FEATURES)}
        inner = {f"{name}{i}": shape for i in range(layers) for name, shape in shapes.items()}
        self.weights = nn.ParameterDict({n: torch.randn(s) * s[0] ** -0.5 for n, s in {**ends, **inner}.items()})

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        w = self.weights
        h = x @ w["embed"] + (waves(t, 48).to(x.dtype) @ w["time"])[:, None]
        for i in range(self.layers):
            h = h + attend(rms(h) @ w[f"qkv{i}"]) @ w[f"out{i}"]
            h = h + F.silu(rms(h) @ w[f"up{i}"]) @ w[f"down{i}"]
        return rms(h) @ w["head"]


def rms(h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)


def attend(qkv: Tensor) -> Tensor:
    q, k, v = qkv.unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _builder(build: Callable[[int], nn.Module], stack: str, nested: bool = False) -> Callable[..., TinyModel]:
    def builder(layers: int = 4, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
        def make(draw: Draw) -> dict[str, Any]:
            call = {"x": draw.latents(draw.batch, draw.tokens, FEATURES), "t": draw.time()}
            return {"batch": call} if nested else call

        module = seeded(lambda: build(layers), seed, dtype)
        return TinyModel(module, make, ((stack, layers),) if stack else (), ("x", "t"), dtype)

    return builder


CALLS: dict[str, Callable[..., TinyModel]] = {
    "in_sequential": _builder(InSequential, "trunk"),
    "whole_in_sequential": _builder(WholeInSequential, "net"),
    "in_while": _builder(InWhile, "stages"),
    "in_dictionary": _builder(InDictionary, "parts.layer"),
    "by_words": _builder(ByWords, "parts"),
    "by_attribute": _builder(ByAttribute, "block_"),
    "pairs": _builder(Pairs, "layers"),
    "chained": _builder(Chained, "first"),
    "containers": _builder(Containers, "encoder", nested=True),
    "functional": _builder(Functional, "weights"),
}
"""Builders, by name."""
