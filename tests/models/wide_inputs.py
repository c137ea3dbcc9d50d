"""What several files of wide models share: common inputs, and which classes are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor

from tests.models.tiny import Draw, TinyModel

FRAMES = 3


def existing(
    builders: Mapping[str, Callable[..., TinyModel]], newer: Mapping[str, str]
) -> dict[str, Callable[..., TinyModel]]:
    """The builders whose class is there: `newer` names those of diffusers 0.42, which Python 3.10 cannot have."""
    return {name: build for name, build in builders.items() if name not in newer or hasattr(diffusers, newer[name])}


def ids(draw: Draw, columns: int = 3) -> Tensor:
    """Position tuples of the image tokens: zeros but for the row and the column."""
    grid = torch.zeros(draw.rows, draw.cols, columns, dtype=draw.dtype)
    grid[..., 1] += torch.arange(draw.rows)[:, None]
    grid[..., 2] += torch.arange(draw.cols)
    return grid.flatten(0, 1)


def picture(draw: Draw, channels: int, text: int, width: int, scale: float = 1000.0) -> dict[str, Any]:
    """The arguments that models on `[batch, channels, height, width]` share."""
    return {
        "hidden_states": draw.latents(draw.batch, channels, 2 * draw.rows, 2 * draw.cols),
        "encoder_hidden_states": draw.content(draw.batch, text, width),
        "timestep": draw.time(scale),
        "return_dict": False,
    }


def _sizes(draw: Draw) -> dict[str, Any]:
    size = torch.tensor([[16.0 * draw.rows, 16.0 * draw.cols]]).repeat(draw.batch, 1)
    return {"original_size": size, "target_size": size.clone(), "crop_coords": torch.zeros(draw.batch, 2)}


def video(draw: Draw, channels: int, text: int, width: int, patch: int = 2, scale: float = 1000.0) -> dict[str, Any]:
    """The arguments that models on `[batch, channels, frames, height, width]` share."""
    return {
        "hidden_states": draw.latents(draw.batch, channels, FRAMES, patch * draw.rows, patch * draw.cols),
        "timestep": draw.time(scale),
        "encoder_hidden_states": draw.content(draw.batch, text, width),
        "return_dict": False,
    }
