"""Tiny image transformers, continued."""

from __future__ import annotations

from typing import Any

import diffusers as D
import torch

from tests.models.tiny import Draw
from tests.models.wide_inputs import _sizes, ids, picture


def _z_image(n: int) -> Any:
    return D.ZImageTransformer2DModel(
        in_channels=4,
        dim=24,
        n_layers=n,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=10,
        axes_dims=[4, 4, 4],
        axes_lens=[128, 32, 32],
    )


def _z_image_inputs(draw: Draw, n: int) -> dict[str, Any]:
    pictures = draw.latents(draw.batch, 4, 1, 2 * draw.rows, 2 * draw.cols)
    return {
        "x": list(pictures.unbind(0)),
        "t": draw.time(1.0, ascending=True, dtype=draw.dtype),
        "cap_feats": list(draw.content(draw.batch, 9, 10).unbind(0)),
        "return_dict": False,
    }


def _prx(n: int) -> Any:
    return D.PRXTransformer2DModel(
        in_channels=4, patch_size=2, context_in_dim=40, hidden_size=24, num_heads=3, depth=n, axes_dim=[4, 4]
    )


def _hidream(n: int) -> Any:
    return D.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=n,
        num_single_layers=n,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[24, 20],
        text_emb_dim=12,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=list(range(2 * n)),
        force_inference_output=True,
    )


def _hidream_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        "hidden_states": draw.latents(draw.batch, 4, 2 * draw.rows, 2 * draw.rows),
        "timesteps": draw.time(),
        "encoder_hidden_states_t5": draw.content(draw.batch, 9, 24),
        "encoder_hidden_states_llama3": draw.content(2 * n, draw.batch, 7, 20),
        "pooled_embeds": draw.content(draw.batch, 12),
        "return_dict": False,
    }


def _hunyuan_image(n: int) -> Any:
    return D.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=n,
        num_single_layers=n,
        num_refiner_layers=1,
        patch_size=(1, 1),
        text_embed_dim=24,
        rope_axes_dim=(4, 4),
    )


def _glm_image(n: int) -> Any:
    return D.GlmImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=n,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=24,
        time_embed_dim=20,
        condition_dim=6,
        prior_vq_quantizer_codebook_size=32,
    )


def _glm_image_inputs(draw: Draw, n: int) -> dict[str, Any]:
    sizes = _sizes(draw)
    del sizes["original_size"]
    return {
        **picture(draw, 4, 9, 24),
        **sizes,
        "prior_token_id": torch.randint(0, 32, (draw.batch, draw.tokens), generator=draw.generator),
        "prior_token_drop": torch.zeros(draw.batch, draw.tokens, dtype=torch.bool),
    }


def _krea2(n: int) -> Any:
    return D.Krea2Transformer2DModel(
        in_channels=6,
        num_layers=n,
        attention_head_dim=12,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=56,
        timestep_embed_dim=20,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=40,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 4, 4),
    )


def _krea2_inputs(draw: Draw, n: int) -> dict[str, Any]:
    positions = torch.cat([torch.zeros(9, 3), ids(draw).float()])
    return {
        "hidden_states": draw.latents(draw.batch, draw.tokens, 6),
        "encoder_hidden_states": draw.content(draw.batch, 9, 3, 16),
        "timestep": draw.time(1.0, dtype=draw.dtype),
        "position_ids": positions,
        "return_dict": False,
    }
