"""Further picture transformers of diffusers with four blocks per stack, for tests that go through many classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as D
import torch

from tests.models.tiny import Draw, TinyModel, case
from tests.models.wide_image_more import (
    _glm_image,
    _glm_image_inputs,
    _hidream,
    _hidream_inputs,
    _hunyuan_image,
    _krea2,
    _krea2_inputs,
    _prx,
    _z_image,
    _z_image_inputs,
)
from tests.models.wide_inputs import _sizes, ids, picture


def packed(draw: Draw, channels: int, text: int, width: int, columns: int = 3) -> dict[str, Any]:
    """The arguments that the descendants of Flux share."""
    return {
        "hidden_states": draw.latents(draw.batch, draw.tokens, channels),
        "encoder_hidden_states": draw.content(draw.batch, text, width),
        "timestep": draw.time(1.0, dtype=draw.dtype),
        "img_ids": ids(draw, columns),
        "txt_ids": torch.zeros(text, columns, dtype=draw.dtype),
        "return_dict": False,
    }


SHAPES = {"capture_dynamic_output_shape_ops": True}
DOUBLE_SINGLE = ("transformer_blocks", "single_transformer_blocks")


def _flux2(n: int) -> Any:
    return D.Flux2Transformer2DModel(
        in_channels=8,
        num_layers=n,
        num_single_layers=n,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 4, 4),
    )


def _chroma(n: int) -> Any:
    return D.ChromaTransformer2DModel(
        in_channels=4,
        num_layers=n,
        num_single_layers=n,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=12,
        approximator_layers=1,
    )


def _flux_like(name: str, **more: Any) -> Callable[[int], Any]:
    def build(n: int) -> Any:
        return getattr(D, name)(
            in_channels=4,
            num_layers=n,
            num_single_layers=n,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            axes_dims_rope=(4, 4, 8),
            **more,
        )

    return build


def _bria_fibo(draw: Draw, n: int) -> dict[str, Any]:
    layers = [draw.content(draw.batch, 9, 12) for _ in range(2 * n)]
    return {**packed(draw, 4, 9, 24), "text_encoder_layers": layers}


def _auraflow(n: int) -> Any:
    return D.AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=n,
        num_single_dit_layers=n,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )


def _lumina2(n: int) -> Any:
    return D.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=n,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=[4, 2, 2],
        cap_feat_dim=10,
    )


def _lumina2_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        **picture(draw, 4, 9, 10),
        "timestep": draw.time(1.0, ascending=True),
        "encoder_attention_mask": draw.mask(9, 9),
    }


def _sana(n: int) -> Any:
    return D.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=n,
        num_cross_attention_heads=3,
        cross_attention_head_dim=8,
        cross_attention_dim=24,
        caption_channels=40,
        sample_size=16,
        patch_size=2,
    )


def _hunyuan_dit(n: int) -> Any:
    return D.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=16,
        hidden_size=16,
        num_layers=n,
        cross_attention_dim=24,
        cross_attention_dim_t5=40,
        pooled_projection_dim=12,
        text_len=7,
        text_len_t5=5,
    )


def _hunyuan_dit_inputs(draw: Draw, n: int) -> dict[str, Any]:
    angle = torch.outer(torch.arange(draw.tokens) * 0.1, torch.linspace(1.0, 0.1, 4)).repeat_interleave(2, 1)
    return {
        **picture(draw, 4, 7, 24),
        "text_embedding_mask": draw.mask(7, 6),
        "encoder_hidden_states_t5": draw.content(draw.batch, 5, 40),
        "text_embedding_mask_t5": draw.mask(5, 4),
        "image_meta_size": torch.full((draw.batch, 6), 16.0),
        "style": torch.zeros(draw.batch, dtype=torch.int64),
        "image_rotary_emb": (angle.cos(), angle.sin()),
    }


def _cogview(name: str, **more: Any) -> Callable[[int], Any]:
    def build(n: int) -> Any:
        return getattr(D, name)(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=n,
            attention_head_dim=8,
            num_attention_heads=4,
            text_embed_dim=40,
            time_embed_dim=24,
            condition_dim=6,
            pos_embed_max_size=16,
            sample_size=16,
            **more,
        )

    return build


def _omnigen(n: int) -> Any:
    return D.OmniGenTransformer2DModel(
        in_channels=4,
        patch_size=2,
        hidden_size=24,
        num_attention_heads=3,
        num_key_value_heads=3,
        intermediate_size=56,
        num_layers=n,
        pad_token_id=0,
        vocab_size=50,
        max_position_embeddings=256,
        original_max_position_embeddings=128,
        rope_scaling={"short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
        pos_embed_max_size=16,
        time_step_dim=20,
    )


def _omnigen_inputs(draw: Draw, n: int) -> dict[str, Any]:
    length = 9 + 1 + draw.tokens
    return {
        "hidden_states": draw.latents(draw.batch, 4, 2 * draw.rows, 2 * draw.cols),
        "timestep": draw.time(1.0),
        "input_ids": torch.randint(0, 50, (draw.batch, 9), generator=draw.generator),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(draw.batch, length, length, dtype=torch.int64),
        "position_ids": torch.arange(length)[None].repeat(draw.batch, 1),
        "return_dict": False,
    }


WIDE_IMAGE: dict[str, Callable[..., TinyModel]] = {
    "flux2": case(
        _flux2, lambda d, n: {**packed(d, 8, 9, 24, 4), "guidance": torch.full((d.batch,), 4.0)}, *DOUBLE_SINGLE
    ),
    "chroma": case(_chroma, lambda d, n: packed(d, 4, 9, 24), *DOUBLE_SINGLE),
    "z_image": case(_z_image, _z_image_inputs, "layers", changing=("x", "t"), fullgraph=False, dynamo=SHAPES),
    "lumina2": case(_lumina2, _lumina2_inputs, "layers", fullgraph=False),
    "auraflow": case(
        _auraflow, lambda d, n: picture(d, 4, 9, 24, 1.0), "joint_transformer_blocks", "single_transformer_blocks"
    ),
    "sana": case(
        _sana, lambda d, n: {**picture(d, 4, 9, 40), "encoder_attention_mask": d.mask(9, 7)}, "transformer_blocks"
    ),
    "hunyuan_dit": case(_hunyuan_dit, _hunyuan_dit_inputs, "blocks"),
    "cogview4": case(
        _cogview("CogView4Transformer2DModel", rope_axes_dim=(16, 16)),
        lambda d, n: {**picture(d, 4, 9, 40), **_sizes(d)},
        "transformer_blocks",
    ),
    "cogview3plus": case(
        _cogview("CogView3PlusTransformer2DModel"),
        lambda d, n: {**picture(d, 4, 9, 40), **_sizes(d)},
        "transformer_blocks",
    ),
    "omnigen": case(_omnigen, _omnigen_inputs, "layers", fullgraph=False),
    "hidream": case(_hidream, _hidream_inputs, *(), changing=("hidden_states", "timesteps"), fullgraph=False),
    "bria": case(_flux_like("BriaTransformer2DModel"), lambda d, n: packed(d, 4, 9, 24), *DOUBLE_SINGLE),
    "bria_fibo": case(_flux_like("BriaFiboTransformer2DModel", text_encoder_dim=12), _bria_fibo, *DOUBLE_SINGLE),
    "ovis_image": case(
        _flux_like("OvisImageTransformer2DModel", out_channels=4), lambda d, n: packed(d, 4, 9, 24), *DOUBLE_SINGLE
    ),
    "longcat_image": case(
        _flux_like("LongCatImageTransformer2DModel", pooled_projection_dim=24),
        lambda d, n: packed(d, 4, 9, 24),
        *DOUBLE_SINGLE,
    ),
    "prx": case(_prx, lambda d, n: picture(d, 4, 9, 40, 1.0), "blocks"),
    "hunyuan_image": case(
        _hunyuan_image,
        lambda d, n: {**picture(d, 4, 9, 24), "encoder_attention_mask": d.mask(9, 7)},
        *DOUBLE_SINGLE,
    ),
    "glm_image": case(_glm_image, _glm_image_inputs, "transformer_blocks", fullgraph=False, dynamo=SHAPES),
    "krea2": case(_krea2, _krea2_inputs, "transformer_blocks"),
}
"""Builders of picture models, by usage."""
