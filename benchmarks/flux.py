"""A transformer of the Flux family with random weights, its inputs, and the ideal of a reused step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn import ModuleList


@dataclass(frozen=True)
class Preset:
    """Architecture and sizes of one case."""

    layers: int
    single_layers: int
    heads: int
    head_dim: int
    rope: tuple[int, int, int]
    grid: int
    """Rows and columns of image tokens."""
    text_tokens: int
    text_dim: int
    pooled_dim: int
    channels: int = 64
    guidance: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def image_tokens(self) -> int:
        """Image tokens per picture."""
        return self.grid * self.grid

    @property
    def dim(self) -> int:
        """Width of a token inside."""
        return self.heads * self.head_dim

    @property
    def shape(self) -> str:
        """In words, for tables."""
        blocks = f"{self.layers}+{self.single_layers} blocks"
        return f"{blocks}, dim {self.dim}, {self.image_tokens}+{self.text_tokens} tokens"

    @property
    def state_bytes(self) -> int:
        """What a cache of F1B0 needs: the reference of the indicator in float32 and the one live-out, image tokens."""
        return self.image_tokens * self.dim * (torch.float32.itemsize + self.dtype.itemsize)


PRESETS = {
    "tiny": Preset(3, 3, 2, 16, (4, 6, 6), grid=4, text_tokens=4, text_dim=32, pooled_dim=16, channels=16),
    "small": Preset(4, 8, 4, 128, (16, 56, 56), grid=32, text_tokens=128, text_dim=512, pooled_dim=256),
    "flux-dev": Preset(
        19, 38, 24, 128, (16, 56, 56), grid=64, text_tokens=512, text_dim=4096, pooled_dim=768,
        guidance=True, dtype=torch.bfloat16,
    ),
}  # fmt: skip
"""`flux-dev` is FLUX.1-dev at 1024x1024."""


def new_transformer(preset: Preset, device: str, seed: int = 0) -> FluxTransformer2DModel:
    """The transformer with random weights, made where it will live, in evaluation mode."""
    torch.manual_seed(seed)
    with _default_dtype(preset.dtype), torch.device(device):
        return _build(preset, preset.layers, preset.single_layers)


def ideal_transformer(transformer: FluxTransformer2DModel, preset: Preset, blocks: int = 1) -> FluxTransformer2DModel:
    """A transformer of the first double blocks only, around the modules of the given one: no second set of weights."""
    with torch.device("meta"):
        ideal = _build(preset, blocks, 0)
    for name, module in transformer.named_children():
        setattr(ideal, name, module)
    ideal.transformer_blocks = ModuleList(transformer.transformer_blocks[:blocks])
    ideal.single_transformer_blocks = ModuleList()
    return ideal


class Loop:
    """Inputs of the calls of a denoising loop, as a pipeline makes them."""

    def __init__(self, preset: Preset, device: str, seed: int = 0) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device, self._dtype = device, preset.dtype
        self._shape = (1, preset.image_tokens, preset.channels)
        rows, columns = torch.meshgrid(torch.arange(preset.grid), torch.arange(preset.grid), indexing="ij")
        image_ids = torch.stack((torch.zeros_like(rows), rows, columns), dim=-1).reshape(-1, 3)
        self._fixed: dict[str, Tensor] = {
            "encoder_hidden_states": self._random((1, preset.text_tokens, preset.text_dim)),
            "pooled_projections": self._random((1, preset.pooled_dim)),
            "txt_ids": torch.zeros(preset.text_tokens, 3, device=device, dtype=preset.dtype),
            "img_ids": image_ids.to(device=device, dtype=preset.dtype),
        }
        if preset.guidance:
            self._fixed["guidance"] = torch.full((1,), 3.5, device=device)

    def step(self, step: int, steps: int) -> dict[str, Tensor]:
        """Keyword arguments of one step: new latents, time falling from 1, the same conditioning objects every time."""
        time = torch.full((1,), 1000.0 * (1 - step / steps), device=self._device).to(self._dtype)
        return {"hidden_states": self._random(self._shape), "timestep": time / 1000, **self._fixed}

    def _random(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self._device).to(self._dtype)


def _build(preset: Preset, layers: int, single_layers: int) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=preset.channels,
        num_layers=layers,
        num_single_layers=single_layers,
        attention_head_dim=preset.head_dim,
        num_attention_heads=preset.heads,
        joint_attention_dim=preset.text_dim,
        pooled_projection_dim=preset.pooled_dim,
        guidance_embeds=preset.guidance,
        axes_dims_rope=preset.rope,
    ).eval()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
