"""Transformers for pictures in the forms of their papers: DiT, U-ViT, MM-DiT, with convolutions, with windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.foreign import F32, SelfAttention, waves
from tests.models.tiny import Draw, TinyModel, seeded

WIDTH, CHANNELS, CLASSES = 24, 4, 10


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int, factor: int = 4) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = (
            nn.Linear(width, factor * width),
            nn.GELU("tanh"),
            nn.Linear(factor * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class DiTBlock(nn.Module):
    """adaLN-Zero: shift, scale and gate of both branches come from the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn, self.mlp = SelfAttention(width, heads), Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_a.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        return x + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_m, scale_m))


class Picture(nn.Module):
    """Patches, time and class; what the models of this file have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.x_embedder = nn.Conv2d(CHANNELS, WIDTH, 2, 2)
        self.t_embedder = nn.Sequential(nn.Linear(64, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.y_embedder = nn.Embedding(CLASSES, WIDTH)
        self.final = nn.Linear(WIDTH, 4 * CHANNELS)

    def patches(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        grid = self.x_embedder(x)
        tokens = grid.flatten(2).transpose(1, 2)
        places = waves(torch.arange(tokens.shape[1], device=x.device), WIDTH).to(x.dtype)
        return tokens + places, (grid.shape[2], grid.shape[3])

    def condition(self, t: Tensor, y: Tensor) -> Tensor:
        return self.t_embedder(waves(t, 64).to(self.final.weight.dtype)) + self.y_embedder(y)

    def unpatchify(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        return F.pixel_shuffle(self.final(tokens).transpose(1, 2).unflatten(2, size), 2)


class DiT(Picture):
    """Scalable diffusion transformer (arXiv 2212.09748), without the variance."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([DiTBlock(WIDTH, 2) for _ in range(layers)])
        self.norm_final = nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x, size = self.patches(x)
        c = self.condition(t, y)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_modulation(c).chunk(2, dim=1)
        return self.unpatchify(modulate(self.norm_final(x), shift, scale), size)


class SkipBlock(nn.Module):
    """Pre-norm block that may begin with a merge of an earlier value."""

    def __init__(self, skip: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = SelfAttention(WIDTH, 2), Mlp(WIDTH)
        self.skip_linear = nn.Linear(2 * WIDTH, WIDTH) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(Picture):
    """All are tokens, with long skip connections from in_blocks to out_blocks (arXiv 2209.12152)."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        half = layers // 2
        self.in_blocks = nn.ModuleList([SkipBlock() for _ in range(half)])
        self.mid_block = SkipBlock()
        self.out_blocks = nn.ModuleList([SkipBlock(skip=True) for _ in range(half)])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x, size = self.patches(x)
        x = torch.cat((self.condition(t, y).unsqueeze(1), self.y_embedder(y).unsqueeze(1), x), dim=1)
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        return self.unpatchify(self.norm(x)[:, 2:], size)


class JointBlock(nn.Module):
    """One sequence of text and image; every modality has its weights, attention is over all (MM-DiT, 2403.03206)."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.ModuleDict({kind: nn.Linear(WIDTH, 3 * WIDTH) for kind in ("text", "image")})
        self.proj = nn.ModuleDict({kind: nn.Linear(WIDTH, WIDTH) for kind in ("text", "image")})
        self.mlp = nn.ModuleDict({kind: Mlp(WIDTH, 2) for kind in ("text", "image")})
        self.norm1 = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.modulation = nn.Linear(WIDTH, 4 * WIDTH)

    def each(self, layers: nn.ModuleDict, joint: Tensor, text: int) -> Tensor:
        return torch.cat([layers["text"](joint[:, :text]), layers["image"](joint[:, text:])], dim=1)

    def forward(self, joint: Tensor, c: Tensor, text: int) -> Tensor:
        scale1, gate1, scale2, gate2 = self.modulation(F.silu(c))[:, None].chunk(4, dim=-1)
        qkv = self.each(self.qkv, self.norm1(joint) * (1 + scale1), text)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        joint = joint + gate1 * self.each(self.proj, out, text)
        return joint + gate2 * self.each(self.mlp, self.norm2(joint) * (1 + scale2), text)


class JointDiT(Picture):
    """Text and image concatenated once, in front of the trunk."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.context_embedder = nn.Linear(20, WIDTH)
        self.joint_blocks = nn.ModuleList([JointBlock() for _ in range(layers)])

    def forward(self, x: Tensor, t: Tensor, y: Tensor, context: Tensor) -> Tensor:
        x, size = self.patches(x)
        c, text = self.condition(t, y), context.shape[1]
        joint = torch.cat([self.context_embedder(context), x], dim=1)
        for block in self.joint_blocks:
            joint = block(joint, c, text)
        return self.unpatchify(joint[:, text:], size)


class ConvBlock(nn.Module):
    """Depthwise convolution on the grid, then attention and MLP (ConvNeXt, 2201.03545, with a condition)."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH)
        self.block, self.scale = DiTBlock(WIDTH, 2), nn.Parameter(torch.full((WIDTH, 1, 1), 0.3))

    def forward(self, grid: Tensor, c: Tensor) -> Tensor:
        grid = grid + self.scale * self.depthwise(grid)
        tokens = self.block(grid.flatten(2).transpose(1, 2), c)
        return tokens.transpose(1, 2).reshape(grid.shape)


class ConvDiT(Picture):
    """The trunk hands on a grid [batch, width, rows, columns]."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.stage = nn.ModuleList([ConvBlock() for _ in range(layers)])

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        tokens, size = self.patches(x)
        grid, c = tokens.transpose(1, 2).unflatten(2, size), self.condition(t, y)
        for block in self.stage:
            grid = block(grid, c)
        return self.unpatchify(grid.flatten(2).transpose(1, 2), size)


class WindowBlock(nn.Module):
    """Attention inside of windows of 2 x 2 patches, cyclically shifted in every other block (Swin, 2103.14030)."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift, self.block = shift, DiTBlock(WIDTH, 2)

    def forward(self, grid: Tensor, c: Tensor) -> Tensor:
        if self.shift:
            grid = torch.roll(grid, (-self.shift, -self.shift), (1, 2))
        batch, rows, cols, width = grid.shape
        windows = grid.view(batch, rows // 2, 2, cols // 2, 2, width).permute(0, 1, 3, 2, 4, 5)
        number = rows * cols // 4
        windows = self.block(windows.reshape(batch * number, 4, width), c.repeat_interleave(number, 0))
        grid = windows.view(batch, rows // 2, cols // 2, 2, 2, width).permute(0, 1, 3, 2, 4, 5).reshape(grid.shape)
        return torch.roll(grid, (self.shift, self.shift), (1, 2)) if self.shift else grid


class WindowDiT(Picture):
    """Plain and shifted windows in turn."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([WindowBlock(i % 2) for i in range(layers)])

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        tokens, size = self.patches(x)
        grid, c = tokens.unflatten(1, size), self.condition(t, y)
        for block in self.layers:
            grid = block(grid, c)
        return self.unpatchify(grid.flatten(1, 2), size)


EVEN = ((4, 6), (6, 8), (4, 10), (2, 6), (8, 6))
"""Grids that windows fit into."""


def _builder(
    build: Callable[[int], nn.Module], stack: str, layers: int = 4, *, text: bool = False, **more: Any
) -> Callable[..., TinyModel]:
    default = layers

    def builder(layers: int = default, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
        def make(draw: Draw) -> dict[str, Any]:
            x = draw.latents(draw.batch, CHANNELS, 2 * draw.rows, 2 * draw.cols)
            call = {"x": x, "t": draw.time(), "y": draw.labels(CLASSES)}
            return {**call, "context": draw.content(draw.batch, 9, 20)} if text else call

        return TinyModel(
            seeded(lambda: build(layers), seed, dtype), make, ((stack, layers),), ("x", "t"), dtype, **more
        )

    return builder


IMAGE: dict[str, Callable[..., TinyModel]] = {
    "facebook_dit": _builder(DiT, "blocks"),
    "u_vit": _builder(UViT, "out_blocks", 7),
    "joint_dit": _builder(JointDiT, "joint_blocks", text=True),
    "conv_dit": _builder(ConvDiT, "stage"),
    "window_dit": _builder(WindowDiT, "layers", grids=EVEN),
}
"""Builders, by name."""
