"""Tiny video transformers, continued."""

from __future__ import annotations

from typing import Any

import diffusers as D
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed

from tests.models.tiny import Draw
from tests.models.wide_inputs import video

FRAMES = 3


def _easyanimate(n: int) -> Any:
    return D.EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        sample_width=10,
        sample_height=8,
        num_layers=n,
        mmdit_layers=n,
        time_embed_dim=8,
        text_embed_dim=40,
    )


def _kandinsky5(n: int) -> Any:
    return D.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=40,
        in_text_dim2=20,
        time_dim=16,
        out_visual_dim=4,
        model_dim=24,
        ff_dim=56,
        num_text_blocks=1,
        num_visual_blocks=n,
        axes_dims=(4, 4, 4),
    )


def _kandinsky5_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        "hidden_states": draw.latents(draw.batch, FRAMES, 2 * draw.rows, 2 * draw.cols, 4),
        "encoder_hidden_states": draw.content(draw.batch, 9, 40),
        "timestep": draw.time(),
        "pooled_projections": draw.content(draw.batch, 20),
        "visual_rope_pos": (torch.arange(FRAMES), torch.arange(draw.rows), torch.arange(draw.cols)),
        "text_rope_pos": torch.arange(9),
        "return_dict": False,
    }


def _cosmos(n: int) -> Any:
    return D.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=n,
        text_embed_dim=40,
        adaln_lora_dim=6,
        max_size=(4, 16, 16),
        concat_padding_mask=False,
    )


def _cosmos_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {**video(draw, 4, 9, 40), "fps": 24}


def _hunyuan15(n: int) -> Any:
    return D.HunyuanVideo15Transformer3DModel(
        in_channels=5,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=n,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=24,
        text_embed_2_dim=20,
        image_embed_dim=12,
        rope_axes_dim=(4, 2, 2),
    )


def _hunyuan15_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        **video(draw, 5, 11, 24, patch=1),
        "encoder_attention_mask": draw.mask(11, 9),
        "encoder_hidden_states_2": draw.content(draw.batch, 7, 20),
        "encoder_attention_mask_2": draw.mask(7, 5),
        "image_embeds": draw.content(draw.batch, 6, 12),
    }


def _framepack(n: int) -> Any:
    return D.HunyuanVideoFramepackTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=n,
        num_single_layers=n,
        num_refiner_layers=1,
        patch_size=2,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
        has_image_proj=True,
        image_proj_dim=12,
        has_clean_x_embedder=True,
    )


def _framepack_inputs(draw: Draw, n: int) -> dict[str, Any]:
    def clip(frames: int) -> torch.Tensor:
        return draw.content(draw.batch, 4, frames, 2 * draw.rows, 2 * draw.cols)

    def frames(first: int, number: int) -> torch.Tensor:
        return torch.arange(first, first + number)

    return {
        **video(draw, 4, 11, 16),
        "encoder_attention_mask": draw.mask(11, 9),
        "pooled_projections": draw.content(draw.batch, 8),
        "image_embeds": draw.content(draw.batch, 6, 12),
        "guidance": torch.full((draw.batch,), 6000.0, dtype=draw.dtype),
        "indices_latents": frames(0, FRAMES),
        "latents_clean": clip(2),
        "indices_latents_clean": frames(3, 2),
        "latents_history_2x": clip(2),
        "indices_latents_history_2x": frames(5, 2),
        "latents_history_4x": clip(4),
        "indices_latents_history_4x": frames(7, 4),
    }


def _sana_video(n: int) -> Any:
    return D.SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=n,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=40,
        sample_size=16,
        rope_max_seq_len=32,
    )


def _stable_audio(n: int) -> Any:
    return D.StableAudioDiTModel(
        sample_size=64,
        in_channels=6,
        num_layers=n,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        out_channels=6,
        cross_attention_dim=24,
        time_proj_dim=10,
        global_states_input_dim=20,
        cross_attention_input_dim=24,
    )


def _stable_audio_inputs(draw: Draw, n: int) -> dict[str, Any]:
    rotary = get_1d_rotary_pos_embed(4, draw.tokens + 1, use_real=True, repeat_interleave_real=False)
    return {
        "hidden_states": draw.latents(draw.batch, 6, draw.tokens),
        "timestep": draw.time(),
        "encoder_hidden_states": draw.content(draw.batch, 9, 24),
        "global_hidden_states": draw.content(draw.batch, 1, 20),
        "rotary_embedding": rotary,
        "return_dict": False,
    }
