"""The digits transformer: its shape, its inputs, and the folder with the trained weights.

A 16x16 image is 64 tokens of 2x2 pixels. The class is one text token and the pooled vector, both one-hot; an eleventh
class stands for "no class", as the empty prompt does elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn.functional import one_hot

from benchmarks.digits.data import IMAGE_SIZE, NUM_CLASSES

WEIGHTS = Path(__file__).parent / "weights"
FEW_STEPS = Path(__file__).parent / "few_steps"
"""The LoRA that makes a model of few steps of them."""
PATCH = 2
GRID = IMAGE_SIZE // PATCH
NULL_CLASS = NUM_CLASSES
CONDITION_WIDTH = NUM_CLASSES + 1


def new_transformer() -> FluxTransformer2DModel:
    """An untrained transformer of 4 double and 8 single blocks, 4 heads of 32, 4.5 million parameters."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=PATCH * PATCH,
        num_layers=4,
        num_single_layers=8,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=CONDITION_WIDTH,
        pooled_projection_dim=CONDITION_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def load_transformer(folder: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> FluxTransformer2DModel:
    """The trained transformer in evaluation mode, read from `folder` without a network."""
    transformer = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    return transformer.eval()


def load_few_steps(folder: Path = FEW_STEPS) -> FluxTransformer2DModel:
    """The transformer distilled to few steps: the LoRA of `folder` fused into the trained weights."""
    transformer = load_transformer()
    transformer.load_lora_adapter(folder, prefix=None, use_safetensors=True)
    transformer.fuse_lora()
    transformer.unload_lora()
    return transformer.eval()


def pack(images: Tensor) -> Tensor:
    """Pixels [N, 16, 16] in [0, 1] -> tokens [N, 64, 4] in [-1, 1]."""
    tokens = images.unflatten(2, (GRID, PATCH)).unflatten(1, (GRID, PATCH)).permute(0, 1, 3, 2, 4)
    return tokens.reshape(len(images), GRID * GRID, PATCH * PATCH) * 2 - 1


def unpack(tokens: Tensor) -> Tensor:
    """Tokens [N, 64, 4] -> pixels [N, 16, 16], clamped to [0, 1]."""
    pixels = tokens.reshape(-1, GRID, GRID, PATCH, PATCH).permute(0, 1, 3, 2, 4)
    return (pixels.reshape(-1, IMAGE_SIZE, IMAGE_SIZE) + 1).div(2).clamp(0, 1)


def condition(labels: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Labels [N] of 0..10 -> text states [N, 1, 11] and pooled vector [N, 11], both one-hot."""
    pooled = one_hot(labels, CONDITION_WIDTH).to(dtype)
    return pooled[:, None].clone(), pooled


def position_ids(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Text ids [1, 3] of zeros and image ids [64, 3] that hold (0, row, column)."""
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    image_ids = torch.stack((torch.zeros_like(rows), rows, columns), dim=-1).reshape(-1, 3)
    return torch.zeros(1, 3, device=device, dtype=dtype), image_ids.to(device=device, dtype=dtype)
