"""The scenes transformer: its shape, its inputs, and the folder with the trained weights.

A 32x32 picture is 256 tokens of 2x2 pixels in three colours. A caption is always 17 words: size, colour, shape and
place for each of the four places, then the background; in an empty place the first three are "nothing". Words are
one-hot text states; the words of one place share a position. Without a caption every word is "nothing".
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from benchmarks.scenes.caption import BACKGROUNDS, COLOURS, NOTHING, PLACES, SHAPES, SIZES, Layouts
from benchmarks.scenes.data import IMAGE_SIZE

WEIGHTS = Path(__file__).parent / "weights"
LARGEST_FILE = "14MB"
PATCH = 2
GRID = IMAGE_SIZE // PATCH
CHANNELS = 3 * PATCH * PATCH
VOCABULARY = ("nothing", *SIZES, *COLOURS, *SHAPES, *PLACES, *BACKGROUNDS)
WORDS_OF_A_PLACE = 4
WORDS = WORDS_OF_A_PLACE * len(PLACES) + 1
POOLED_WIDTH = len(BACKGROUNDS) + 1
"""The background, and a flag for "no caption"."""


def new_transformer() -> FluxTransformer2DModel:
    """An untrained transformer of 6 double and 18 single blocks, 6 heads of 32, 18 million parameters."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=CHANNELS,
        num_layers=6,
        num_single_layers=18,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=len(VOCABULARY),
        pooled_projection_dim=POOLED_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def load_transformer(folder: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> FluxTransformer2DModel:
    """The trained transformer in evaluation mode, read from `folder` without a network."""
    transformer = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    return transformer.eval()


def pack(images: Tensor) -> Tensor:
    """Pixels [N, 3, 32, 32] in [0, 1] -> tokens [N, 256, 12] in [-1, 1]."""
    patches = images.unflatten(3, (GRID, PATCH)).unflatten(2, (GRID, PATCH)).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(len(images), GRID * GRID, CHANNELS) * 2 - 1


def unpack(tokens: Tensor) -> Tensor:
    """Tokens [N, 256, 12] -> pixels [N, 3, 32, 32], clamped to [0, 1]."""
    patches = tokens.reshape(-1, GRID, GRID, 3, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
    return (patches.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE) + 1).div(2).clamp(0, 1)


def words(layouts: Layouts) -> Tensor:
    """The caption of each scene, int64 [N, 17] of rows in VOCABULARY."""
    shape, colour, size = layouts.things.unbind(dim=-1)
    places = torch.arange(len(PLACES), device=shape.device).expand_as(shape)
    empty = shape == NOTHING
    named = torch.stack(
        (
            (size + VOCABULARY.index(SIZES[0])).masked_fill(empty, 0),
            (colour + VOCABULARY.index(COLOURS[0])).masked_fill(empty, 0),
            (shape + VOCABULARY.index(SHAPES[0])).masked_fill(empty, 0),
            places + VOCABULARY.index(PLACES[0]),
        ),
        dim=-1,
    )
    ground = layouts.backgrounds[:, None] + VOCABULARY.index(BACKGROUNDS[0])
    return torch.cat((named.flatten(1), ground), dim=1)


def condition(
    layouts: Layouts, dropped: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Text states [N, 17, 24] and pooled vector [N, 6], both one-hot; `dropped`, bool [N], takes captions away."""
    caption, ground = words(layouts), layouts.backgrounds
    if dropped is not None:
        caption = caption.masked_fill(dropped[:, None], 0)
        ground = ground.masked_fill(dropped, POOLED_WIDTH - 1)
    return _one_hot(caption, len(VOCABULARY), dtype), _one_hot(ground, POOLED_WIDTH, dtype)


def position_ids(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Text ids [17, 3] of (1 to 4, 0, 0) by place, 0 for the background, and image ids [256, 3] of (0, row, column)."""
    place = torch.arange(1, len(PLACES) + 1).repeat_interleave(WORDS_OF_A_PLACE)
    text_ids = torch.zeros(WORDS, 3)
    text_ids[: len(place), 0] = place
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    image_ids = torch.stack((torch.zeros_like(rows), rows, columns), dim=-1).reshape(-1, 3)
    return text_ids.to(device=device, dtype=dtype), image_ids.to(device=device, dtype=dtype)


def _one_hot(rows: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    # unlike torch.nn.functional.one_hot, this never reads the rows on the host
    return (rows[..., None] == torch.arange(width, device=rows.device)).to(dtype)
