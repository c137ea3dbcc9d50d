"""Tiny transformers that take packed sequences, sparse masks, or sound and picture together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as D
import torch

from tests.models.tiny import Draw, TinyModel, case
from tests.models.wide_inputs import FRAMES, existing, ids, picture, video

TEXT = 7
"""Text tokens in front of the picture, where both lie in one sequence."""


def _bria_fibo2(n: int) -> Any:
    return D.BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=24,
        n_layers=n,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=20,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=2,
        gist_min_text_len=4,
        gist_max_text_len=16,
        axes_dims=(4, 4, 4),
        axes_lens=(64, 64, 64),
    )


def _bria_fibo2_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {**picture(draw, 4, 9, 20, 1.0), "encoder_hidden_states": draw.content(draw.batch, 2, 9, 20)}


def _joyimage_plus(n: int) -> Any:
    return D.JoyImageEditPlusTransformer3DModel(
        in_channels=4, hidden_size=24, num_attention_heads=2, text_dim=40, num_layers=n, rope_dim_list=[4, 4, 4]
    )


def _joyimage_plus_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        "hidden_states": draw.latents(draw.batch, draw.tokens, 4, 1, 2, 2),
        "timestep": draw.time(),
        "encoder_hidden_states": draw.content(draw.batch, 9, 40),
        "encoder_hidden_states_mask": draw.mask(9, 7),
        "shape_list": [[(1, draw.rows, draw.cols)]] * draw.batch,
        "return_dict": False,
    }


def _kandinsky6(n: int) -> Any:
    return D.Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=40,
        in_text_dim2=20,
        time_dim=16,
        model_dim=24,
        ff_dim=56,
        num_text_blocks=1,
        num_visual_blocks=n,
        axes_dims=(4, 4, 4),
        in_audio_dim=6,
        out_audio_dim=6,
    )


def _kandinsky6_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        "hidden_states": draw.latents(draw.batch, FRAMES, 2 * draw.rows, 2 * draw.cols, 9),
        "encoder_hidden_states": draw.content(draw.batch, 9, 40),
        "pooled_projections": draw.content(draw.batch, 20),
        "timestep": draw.time(),
        "audio_hidden_states": draw.latents(draw.batch, 11, 6),
        "return_dict": False,
    }


BLOCK = 8
"""The sparse attention of Kandinsky 6 wants whole squares of tokens."""


def _kandinsky6_sr(n: int) -> Any:
    return D.Kandinsky6SRTransformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        time_dim=16,
        model_dim=32,
        ff_dim=56,
        num_visual_blocks=n,
        axes_dims=(4, 6, 6),
        nabla_window=(1, 1, 1),
    )


def _kandinsky6_sr_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        "hidden_states": draw.latents(draw.batch, 2, BLOCK * draw.rows, BLOCK * draw.cols, 9),
        "timestep": draw.time(),
        "return_dict": False,
    }


def _minimax_h3(n: int) -> Any:
    return D.MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=32,
        num_layers=n,
        num_refiner_layers=1,
        ffn_dim=56,
        in_channels=4,
        audio_in_channels=6,
        text_dim=40,
        freq_dim=16,
        time_embed_hidden_dim=24,
        time_embed_dim=20,
        rope_freq_dim=2,
    )


def _minimax_h3_inputs(draw: Draw, n: int) -> dict[str, Any]:
    video_tokens, audio_tokens = draw.tokens, 5
    length = TEXT + video_tokens + audio_tokens
    tags = torch.tensor([0] * TEXT + [1] * video_tokens + [2] * audio_tokens)
    places = torch.arange(length)
    return {
        "hidden_states": draw.latents(draw.batch, video_tokens, 16),
        "audio_hidden_states": draw.latents(draw.batch, audio_tokens, 6),
        "encoder_hidden_states": draw.content(draw.batch, TEXT, 40),
        "timestep": draw.time()[:1],
        "timestep_indices": torch.zeros(length, dtype=torch.int64),
        "token_tags": tags,
        "position_ids": places[:, None].repeat(1, 3),
        "video_indices": places[tags == 1],
        "audio_indices": places[tags == 2],
        "text_indices": places[tags == 0],
        "return_dict": False,
    }


def _qwen21(n: int) -> Any:
    return D.QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=n,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=40,
        axes_dims_rope=(4, 6, 6),
    )


def _qwen21_inputs(draw: Draw, n: int) -> dict[str, Any]:
    slots = torch.tensor([False] * TEXT + [True] * draw.tokens)
    return {
        "hidden_states": draw.latents(draw.batch, 4 * draw.tokens, 4),
        "encoder_hidden_states": draw.content(draw.batch, TEXT, 40),
        "timestep": draw.time(1.0),
        "img_shapes": [[(1, 2 * draw.rows, 2 * draw.cols)]] * draw.batch,
        "img_mask": slots[None].repeat(draw.batch, 1),
        "return_dict": False,
    }


def _cosmos3(n: int) -> Any:
    return D.Cosmos3OmniTransformer(
        head_dim=12,
        hidden_size=24,
        intermediate_size=56,
        latent_channel=4,
        num_attention_heads=2,
        num_hidden_layers=n,
        num_key_value_heads=1,
        patch_latent_dim=16,
        rope_axes_dim=(2, 2, 2),
        vocab_size=50,
    )


def _cosmos3_inputs(draw: Draw, n: int) -> dict[str, Any]:
    tokens = FRAMES * draw.tokens
    places = torch.arange(TEXT, TEXT + tokens)
    return {
        "input_ids": torch.randint(0, 50, (TEXT,), generator=draw.generator),
        "text_indexes": torch.arange(TEXT),
        "position_ids": torch.arange(TEXT + tokens)[None].repeat(3, 1),
        "und_len": TEXT,
        "sequence_length": TEXT + tokens,
        "vision_tokens": [draw.latents(1, 4, FRAMES, 2 * draw.rows, 2 * draw.cols)],
        "vision_token_shapes": [(FRAMES, draw.rows, draw.cols)],
        "vision_sequence_indexes": places,
        "vision_mse_loss_indexes": places,
        "vision_timesteps": draw.time()[:1].repeat(tokens),
        "vision_noisy_frame_indexes": [torch.arange(FRAMES)],
        "return_dict": False,
    }


def _sana_wm(n: int) -> Any:
    return D.SanaWMTransformer3DModel(
        in_channels=4,
        num_layers=n,
        hidden_size=32,
        num_attention_heads=2,
        linear_head_dim=16,
        caption_channels=40,
        chunk_plucker_channels=6,
        chunk_plucker_post_attn_blocks=n,
    )


def _sana_wm_inputs(draw: Draw, n: int) -> dict[str, Any]:
    camera = torch.cat([torch.eye(4).flatten(), torch.tensor([1.0, 1.0, 0.5, 0.5])])
    return {
        **video(draw, 4, 9, 40, patch=1),
        "timestep": draw.time()[:, None, None].repeat(1, 1, FRAMES),
        "encoder_hidden_states": draw.content(draw.batch, 1, 9, 40),
        "encoder_attention_mask": draw.mask(9, 7),
        "camera_conditions": camera.repeat(draw.batch, FRAMES, 1),
        "chunk_plucker": draw.content(draw.batch, 6, FRAMES, draw.rows, draw.cols),
    }


def _sana_wm_refiner(n: int) -> Any:
    return D.SanaWMLTX2RefinerTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=6,
        audio_cross_attention_dim=12,
        num_layers=n,
        caption_channels=40,
    )


def _sana_wm_refiner_inputs(draw: Draw, n: int) -> dict[str, Any]:
    angle = torch.outer(torch.arange(draw.tokens) * 0.1, torch.linspace(1.0, 0.1, 12)).repeat_interleave(2, 1)[None]
    return {
        "hidden_states": draw.latents(draw.batch, draw.tokens, 4),
        "encoder_hidden_states": draw.content(draw.batch, 9, 40),
        "timestep": draw.time(),
        "video_rotary_emb": (angle.cos(), angle.sin()),
        "encoder_attention_mask": draw.mask(9, 7),
        "return_dict": False,
    }


def _flux3_single(n: int) -> Any:
    return D.Flux3Transformer2DModel(
        in_channels=8,
        cond_in_channels=8,
        num_layers=n // 2,
        num_single_layers=n,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_channels=20,
        axes_dims_rope=(4, 4, 4, 4),
    )


def _flux3_single_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        "hidden_states": draw.latents(draw.batch, draw.tokens, 8),
        "encoder_hidden_states": draw.content(draw.batch, 9, 24),
        "timestep": draw.time(1.0, dtype=draw.dtype),
        "img_ids": ids(draw, 4),
        "txt_ids": torch.zeros(9, 4, dtype=draw.dtype),
        "return_dict": False,
    }


NEWER = {
    "bria_fibo2": "BriaFibo2Transformer2DModel",
    "kandinsky6": "Kandinsky6Transformer3DModel",
    "kandinsky6_sr": "Kandinsky6SRTransformer3DModel",
    "sana_wm": "SanaWMTransformer3DModel",
    "flux3_single": "Flux3Transformer2DModel",
    "sana_wm_refiner": "SanaWMLTX2RefinerTransformer3DModel",
}
_ALL: dict[str, Callable[..., TinyModel]] = {
    "bria_fibo2": case(_bria_fibo2, _bria_fibo2_inputs, "layers"),
    "joyimage_plus": case(_joyimage_plus, _joyimage_plus_inputs, "double_blocks"),
    "kandinsky6": case(
        _kandinsky6,
        _kandinsky6_inputs,
        "visual_transformer_blocks",
        changing=("hidden_states", "audio_hidden_states", "timestep"),
    ),
    "kandinsky6_sr": case(
        _kandinsky6_sr,
        _kandinsky6_sr_inputs,
        "visual_transformer_blocks",
        grids=((1, 2), (2, 2), (2, 1), (1, 3), (3, 1)),
    ),
    "minimax_h3": case(
        _minimax_h3,
        _minimax_h3_inputs,
        "transformer_blocks",
        changing=("hidden_states", "audio_hidden_states", "timestep"),
    ),
    "qwen21": case(_qwen21, _qwen21_inputs, "transformer_blocks", fullgraph=False),
    "cosmos3": case(_cosmos3, _cosmos3_inputs, "layers", changing=("vision_tokens", "vision_timesteps")),
    "sana_wm": case(_sana_wm, _sana_wm_inputs, "blocks"),
    "flux3_single": case(_flux3_single, _flux3_single_inputs, "single_transformer_blocks"),
    "sana_wm_refiner": case(_sana_wm_refiner, _sana_wm_refiner_inputs, "transformer_blocks"),
}
WIDE_PACKED = existing(_ALL, NEWER)
"""Builders of models with packed or mixed inputs."""
