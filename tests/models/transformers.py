"""Bare tiny transformers for direct calls: eight classes of diffusers, and the models of `foreign`.

Widths, text lengths and token counts are chosen unequal, because Dynamo lets equal sizes share a symbol.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)

from tests.models.foreign import FOREIGN
from tests.models.tiny import SQUARES, Draw, TinyModel, seeded

F32 = torch.float32


def ids(rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    """Position triples (0, row, column) of a grid of image tokens."""
    grid = torch.zeros(rows, cols, 3, dtype=dtype)
    grid[..., 1] += torch.arange(rows)[:, None]
    grid[..., 2] += torch.arange(cols)[None, :]
    return grid.reshape(rows * cols, 3)


def flux(layers: int = 4, seed: int = 0, dtype: torch.dtype = F32, single_layers: int | None = None) -> TinyModel:
    """Double blocks, then single blocks on the joined sequence; guidance embedded."""
    single = layers if single_layers is None else single_layers
    module = seeded(
        lambda: FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=layers,
            num_single_layers=single,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=40,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
        seed,
        dtype,
    )

    def make(draw: Draw) -> dict[str, Any]:
        return {
            "hidden_states": draw.latents(draw.batch, draw.tokens, 4),
            "encoder_hidden_states": draw.content(draw.batch, 9, 24),
            "pooled_projections": draw.content(draw.batch, 40),
            "timestep": draw.time(1.0, dtype=dtype),
            "guidance": torch.full((draw.batch,), 3.5),
            "img_ids": ids(draw.rows, draw.cols, dtype),
            "txt_ids": torch.zeros(9, 3, dtype=dtype),
            "return_dict": False,
        }

    return TinyModel(module, make, (("transformer_blocks", layers), ("single_transformer_blocks", single)), dtype=dtype)


def sd3(layers: int = 4, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
    """Joint attention in one list whose last block drops the text stream."""
    module = seeded(
        lambda: SD3Transformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=4,
            num_layers=layers,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=24,
            pooled_projection_dim=40,
            out_channels=4,
            pos_embed_max_size=16,
        ),
        seed,
        dtype,
    )

    def make(draw: Draw) -> dict[str, Any]:
        return {
            "hidden_states": draw.latents(draw.batch, 4, 2 * draw.rows, 2 * draw.cols),
            "encoder_hidden_states": draw.content(draw.batch, 9, 24),
            "pooled_projections": draw.content(draw.batch, 40),
            "timestep": draw.time(),
            "return_dict": False,
        }

    return TinyModel(module, make, (("transformer_blocks", layers),), dtype=dtype)


def qwen(layers: int = 4, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
    """Joint attention over two streams, grid sizes passed as Python integers."""
    module = seeded(
        lambda: QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=layers,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=24,
            guidance_embeds=False,
            axes_dims_rope=(8, 4, 4),
        ),
        seed,
        dtype,
    )

    def make(draw: Draw) -> dict[str, Any]:
        return {
            "hidden_states": draw.latents(draw.batch, draw.tokens, 16),
            "encoder_hidden_states": draw.content(draw.batch, 7, 24),
            "encoder_hidden_states_mask": draw.mask(7, 7),
            "timestep": draw.time(1.0, dtype=dtype),
            "img_shapes": [[(1, draw.rows, draw.cols)]] * draw.batch,
            "return_dict": False,
        }

    return TinyModel(module, make, (("transformer_blocks", layers),), dtype=dtype)


def wan(layers: int = 4, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
    """Video tokens with cross attention to the text."""
    module = seeded(
        lambda: WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=40,
            freq_dim=256,
            ffn_dim=56,
            num_layers=layers,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        ),
        seed,
        dtype,
    )

    def make(draw: Draw) -> dict[str, Any]:
        return {
            "hidden_states": draw.latents(draw.batch, 16, 3, 2 * draw.rows, 2 * draw.cols),
            "timestep": draw.time(),
            "encoder_hidden_states": draw.content(draw.batch, 9, 40),
            "return_dict": False,
        }

    return TinyModel(module, make, (("blocks", layers),), dtype=dtype)


def pixart(layers: int = 4, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
    """Cross attention with a padded text mask, modulation shared by all blocks."""
    module = seeded(
        lambda: PixArtTransformer2DModel(
            sample_size=8,
            num_layers=layers,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=40,
            in_channels=4,
            cross_attention_dim=24,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
        ),
        seed,
        dtype,
    )

    def make(draw: Draw) -> dict[str, Any]:
        return {
            "hidden_states": draw.latents(draw.batch, 4, 2 * draw.rows, 2 * draw.cols),
            "encoder_hidden_states": draw.content(draw.batch, 11, 40),
            "encoder_attention_mask": draw.mask(11, 9, dtype),
            "timestep": draw.time(),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            "return_dict": False,
        }

    return TinyModel(module, make, (("transformer_blocks", layers),), dtype=dtype)


def cogvideox(layers: int = 4, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
    """Joint sequence of text and video with rotary tables passed in."""
    module = seeded(
        lambda: CogVideoXTransformer3DModel(
            num_attention_heads=3,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=2,
            text_embed_dim=40,
            num_layers=layers,
            sample_width=10,
            sample_height=8,
            sample_frames=9,
            patch_size=2,
            temporal_compression_ratio=4,
            max_text_seq_length=9,
            use_rotary_positional_embeddings=True,
        ),
        seed,
        dtype,
    )

    def make(draw: Draw) -> dict[str, Any]:
        angle = torch.outer(torch.arange(3 * draw.tokens) * 0.1, torch.linspace(1.0, 0.1, 8)).repeat_interleave(2, 1)
        return {
            "hidden_states": draw.latents(draw.batch, 3, 4, 2 * draw.rows, 2 * draw.cols),
            "encoder_hidden_states": draw.content(draw.batch, 9, 40),
            "timestep": draw.time(),
            "image_rotary_emb": (angle.cos(), angle.sin()),
            "return_dict": False,
        }

    return TinyModel(module, make, (("transformer_blocks", layers),), dtype=dtype)


def hunyuan_video(
    layers: int = 4, seed: int = 0, dtype: torch.dtype = F32, single_layers: int | None = None
) -> TinyModel:
    """Two stacks after a small text refiner (a stack of its own that is not the trunk), padded text mask."""
    single = layers if single_layers is None else single_layers
    module = seeded(
        lambda: HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=layers,
            num_single_layers=single,
            num_refiner_layers=1,
            patch_size=1,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=16,
            pooled_projection_dim=8,
            rope_axes_dim=(2, 4, 4),
        ),
        seed,
        dtype,
    )

    def make(draw: Draw) -> dict[str, Any]:
        return {
            "hidden_states": draw.latents(draw.batch, 4, 3, draw.rows, draw.cols),
            "timestep": draw.time(),
            "encoder_hidden_states": draw.content(draw.batch, 11, 16),
            "encoder_attention_mask": draw.mask(11, 9),
            "pooled_projections": draw.content(draw.batch, 8),
            "guidance": torch.full((draw.batch,), 6000.0, dtype=dtype),
            "return_dict": False,
        }

    return TinyModel(module, make, (("transformer_blocks", layers), ("single_transformer_blocks", single)), dtype=dtype)


def dit(layers: int = 4, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
    """Class-conditional blocks, each with its own embedding of time and class."""
    module = seeded(
        lambda: DiTTransformer2DModel(
            sample_size=16,
            num_layers=layers,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            in_channels=4,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_zero",
            norm_elementwise_affine=False,
        ),
        seed,
        dtype,
    )

    def make(draw: Draw) -> dict[str, Any]:
        return {
            "hidden_states": draw.latents(draw.batch, 4, 2 * draw.rows, 2 * draw.cols),
            "timestep": draw.time(dtype=torch.int64),
            "class_labels": draw.labels(1000),
            "return_dict": False,
        }

    return TinyModel(module, make, (("transformer_blocks", layers),), dtype=dtype, grids=SQUARES)


DIFFUSERS: dict[str, Callable[..., TinyModel]] = {
    "flux": flux,
    "sd3": sd3,
    "qwen": qwen,
    "wan": wan,
    "pixart": pixart,
    "cogvideox": cogvideox,
    "hunyuan_video": hunyuan_video,
    "dit": dit,
}
"""Builders for classes of diffusers."""

TRANSFORMERS: dict[str, Callable[..., TinyModel]] = {**DIFFUSERS, **FOREIGN}
"""All builders."""
