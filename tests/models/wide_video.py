"""Further video and audio transformers of diffusers with four blocks per stack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as D
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

from tests.models.tiny import Draw, TinyModel, case
from tests.models.wide_inputs import video
from tests.models.wide_video_more import (
    _cosmos,
    _cosmos_inputs,
    _easyanimate,
    _framepack,
    _framepack_inputs,
    _hunyuan15,
    _hunyuan15_inputs,
    _kandinsky5,
    _kandinsky5_inputs,
    _sana_video,
    _stable_audio,
    _stable_audio_inputs,
)

FRAMES = 3


WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 40,
    "freq_dim": 16,
    "ffn_dim": 56,
}


def _wan_like(name: str, **more: Any) -> Callable[[int], Any]:
    return lambda n: getattr(D, name)(**{**WAN, "num_layers": n, **more})


def _wan_vace(n: int) -> Any:
    return D.WanVACETransformer3DModel(
        **WAN, num_layers=n, vace_layers=list(range(0, n, 2)), vace_in_channels=12, rope_max_seq_len=32
    )


def _wan_vace_inputs(draw: Draw, n: int) -> dict[str, Any]:
    control = draw.content(draw.batch, 12, FRAMES, 2 * draw.rows, 2 * draw.cols)
    return {
        **video(draw, 4, 9, 40),
        "control_hidden_states": control,
        "control_hidden_states_scale": torch.full((len(range(0, n, 2)),), 0.7, dtype=draw.dtype),
    }


def _wan_animate(n: int) -> Any:
    return D.WanAnimateTransformer3DModel(
        **{**WAN, "in_channels": 12},
        latent_channels=4,
        num_layers=n,
        image_dim=20,
        rope_max_seq_len=32,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )


def _wan_animate_inputs(draw: Draw, n: int) -> dict[str, Any]:
    inputs = video(draw, 12, 9, 40)
    return {
        **inputs,
        "encoder_hidden_states_image": draw.content(draw.batch, 7, 20),
        "pose_hidden_states": draw.content(draw.batch, 4, FRAMES - 1, 2 * draw.rows, 2 * draw.cols),
        "face_pixel_values": draw.content(draw.batch, 3, 4 * (FRAMES - 1) - 3, 16, 16),
    }


def _helios(n: int) -> Any:
    return D.HeliosTransformer3DModel(**WAN, num_layers=n, rope_dim=(4, 4, 4))


def _helios_inputs(draw: Draw, n: int) -> dict[str, Any]:
    def history(frames: int) -> torch.Tensor:
        return draw.content(draw.batch, 4, frames, 2 * draw.rows, 2 * draw.cols)

    def frames(first: int, number: int) -> torch.Tensor:
        return torch.arange(first, first + number)[None].repeat(draw.batch, 1)

    return {
        **video(draw, 4, 9, 40),
        "indices_hidden_states": frames(9, FRAMES),
        "indices_latents_history_short": frames(7, 2),
        "indices_latents_history_mid": frames(4, 2),
        "indices_latents_history_long": frames(0, 4),
        "latents_history_short": history(2),
        "latents_history_mid": history(2),
        "latents_history_long": history(4),
    }


def _ltx(n: int) -> Any:
    return D.LTXVideoTransformer3DModel(
        in_channels=6,
        out_channels=6,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=n,
        caption_channels=40,
    )


def _tokens(draw: Draw, channels: int) -> dict[str, Any]:
    return {
        "hidden_states": draw.latents(draw.batch, FRAMES * draw.tokens, channels),
        "encoder_hidden_states": draw.content(draw.batch, 9, 40),
        "timestep": draw.time(),
        "encoder_attention_mask": draw.mask(9, 7),
        "num_frames": FRAMES,
        "height": draw.rows,
        "width": draw.cols,
        "return_dict": False,
    }


def _ltx2(n: int) -> Any:
    return D.LTX2VideoTransformer3DModel(
        in_channels=6,
        out_channels=6,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=5,
        audio_out_channels=5,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=n,
        caption_channels=40,
    )


def _ltx2_inputs(draw: Draw, n: int) -> dict[str, Any]:
    inputs = _tokens(draw, 6)
    return {
        **inputs,
        "audio_hidden_states": draw.latents(draw.batch, 11, 5),
        "audio_encoder_hidden_states": draw.content(draw.batch, 9, 40),
        "audio_encoder_attention_mask": inputs["encoder_attention_mask"].clone(),
        "timestep": draw.time()[:, None],
        "audio_num_frames": 11,
    }


def _mochi(n: int) -> Any:
    return D.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=n,
        pooled_projection_dim=12,
        in_channels=4,
        text_embed_dim=24,
        time_embed_dim=20,
        max_sequence_length=11,
    )


def _latte(n: int) -> Any:
    return D.LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=n,
        cross_attention_dim=16,
        attention_bias=True,
        sample_size=16,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=24,
        video_length=FRAMES,
    )


def _allegro(n: int) -> Any:
    return D.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=n,
        cross_attention_dim=24,
        sample_height=8,
        sample_width=10,
        sample_frames=FRAMES,
        caption_channels=40,
    )


def _allegro_inputs(draw: Draw, n: int) -> dict[str, Any]:
    t, h, w, *grids = get_3d_rotary_pos_embed_allegro(
        embed_dim=12,
        crops_coords=((0, 0), (draw.rows, draw.cols)),
        grid_size=(draw.rows, draw.cols),
        temporal_size=FRAMES,
        interpolation_scale=(2.2, 2.0, 2.0),
        device=torch.device("cpu"),
    )
    positions = torch.cartesian_prod(*(grid.long() for grid in grids)).T.reshape(3, 1, -1).contiguous()
    return {
        **video(draw, 4, 9, 40),
        "encoder_hidden_states": draw.content(draw.batch, 1, 9, 40),
        "encoder_attention_mask": draw.mask(9, 7),
        "image_rotary_emb": ((t, h, w), tuple(positions)),
    }


def _consisid(n: int) -> Any:
    return D.ConsisIDTransformer3DModel(
        num_attention_heads=3,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=40,
        num_layers=n,
        sample_width=10,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=9,
        use_rotary_positional_embeddings=True,
        is_train_face=True,
        cross_attn_interval=2,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=20,
        LFE_vit_dim=12,
        LFE_depth=2,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=1,
        LFE_num_querie=4,
        LFE_output_dim=32,
        LFE_ff_mult=1,
        LFE_num_scale=2,
    )


def _consisid_inputs(draw: Draw, n: int) -> dict[str, Any]:
    angle = torch.outer(torch.arange(FRAMES * draw.tokens) * 0.1, torch.linspace(1.0, 0.1, 8)).repeat_interleave(2, 1)
    return {
        "hidden_states": draw.latents(draw.batch, FRAMES, 4, 2 * draw.rows, 2 * draw.cols),
        "encoder_hidden_states": draw.content(draw.batch, 9, 40),
        "timestep": draw.time(),
        "image_rotary_emb": (angle.cos(), angle.sin()),
        "id_cond": draw.content(draw.batch, 20),
        "id_vit_hidden": [draw.content(draw.batch, 4, 12) for _ in range(2)],
        "return_dict": False,
    }


SHAPES = {"capture_dynamic_output_shape_ops": True}
SCALARS = {**SHAPES, "capture_scalar_outputs": True}
SMALL_ROPE = {"rope_max_seq_len": 32}

WIDE_VIDEO: dict[str, Callable[..., TinyModel]] = {
    "ltx": case(_ltx, lambda d, n: _tokens(d, 6), "transformer_blocks"),
    "ltx2": case(
        _ltx2, _ltx2_inputs, "transformer_blocks", changing=("hidden_states", "audio_hidden_states", "timestep")
    ),
    "mochi": case(
        _mochi,
        lambda d, n: {**video(d, 4, 11, 24), "encoder_attention_mask": d.mask(11, 9).bool()},
        "transformer_blocks",
        fullgraph=False,
        dynamo=SHAPES,
    ),
    "latte": case(_latte, lambda d, n: video(d, 4, 9, 24), "transformer_blocks", "temporal_transformer_blocks"),
    "allegro": case(_allegro, _allegro_inputs, "transformer_blocks"),
    "stable_audio": case(_stable_audio, _stable_audio_inputs, "transformer_blocks"),
    "easyanimate": case(_easyanimate, lambda d, n: video(d, 4, 9, 40), "transformer_blocks"),
    "kandinsky5": case(_kandinsky5, _kandinsky5_inputs, "visual_transformer_blocks"),
    "skyreels_v2": case(
        _wan_like("SkyReelsV2Transformer3DModel", **SMALL_ROPE), lambda d, n: video(d, 4, 9, 40), "blocks"
    ),
    "consisid": case(_consisid, _consisid_inputs, "transformer_blocks"),
    "cosmos": case(_cosmos, _cosmos_inputs, "transformer_blocks"),
    "hunyuan_video15": case(_hunyuan15, _hunyuan15_inputs, "transformer_blocks", fullgraph=False, dynamo=SHAPES),
    "framepack": case(
        _framepack,
        _framepack_inputs,
        "transformer_blocks",
        "single_transformer_blocks",
        fullgraph=False,
        dynamo=SCALARS,
    ),
    "wan_vace": case(_wan_vace, _wan_vace_inputs, "blocks"),
    "wan_animate": case(_wan_animate, _wan_animate_inputs, "blocks"),
    "chronoedit": case(
        _wan_like("ChronoEditTransformer3DModel", **SMALL_ROPE), lambda d, n: video(d, 4, 9, 40), "blocks"
    ),
    "helios": case(_helios, _helios_inputs, "blocks"),
    "sana_video": case(
        _sana_video,
        lambda d, n: {**video(d, 4, 9, 40), "encoder_attention_mask": d.mask(9, 7)},
        "transformer_blocks",
    ),
}
"""Builders of video and audio models, by usage."""
