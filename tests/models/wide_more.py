"""Less common classes of diffusers, among them several whose structure is unusual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as D
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

from tests.models.tiny import Draw, TinyModel, case
from tests.models.wide_image import packed, picture
from tests.models.wide_inputs import existing
from tests.models.wide_video import FRAMES, SCALARS, WAN, video


def _flux3(n: int) -> Any:
    return D.Flux3Transformer2DModel(
        in_channels=8,
        cond_in_channels=8,
        num_layers=n,
        num_single_layers=n,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_channels=20,
        axes_dims_rope=(4, 4, 4, 4),
    )


def _joyimage(n: int) -> Any:
    return D.JoyImageEditTransformer3DModel(
        patch_size=[1, 2, 2],
        in_channels=4,
        hidden_size=24,
        num_attention_heads=2,
        text_dim=40,
        num_layers=n,
        rope_dim_list=[4, 4, 4],
    )


def _motif(n: int) -> Any:
    return D.MotifVideoTransformer3DModel(
        in_channels=5,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=n,
        num_single_layers=n,
        text_embed_dim=40,
        rope_axes_dim=(4, 4, 4),
    )


def _ernie(n: int) -> Any:
    return D.ErnieImageTransformer2DModel(
        hidden_size=24,
        num_attention_heads=2,
        num_layers=n,
        ffn_hidden_size=56,
        in_channels=6,
        out_channels=6,
        text_in_dim=40,
        rope_axes_dim=(4, 4, 4),
    )


def _ernie_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        "hidden_states": draw.latents(draw.batch, 6, draw.rows, draw.cols),
        "timestep": draw.time(),
        "text_bth": draw.content(draw.batch, 9, 40),
        "text_lens": torch.full((draw.batch,), 7),
        "return_dict": False,
    }


def _ideogram4(n: int) -> Any:
    return D.Ideogram4Transformer2DModel(
        in_channels=6,
        num_layers=n,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=56,
        adaln_dim=20,
        llm_features_dim=40,
        mrope_section=(4, 2, 2),
    )


def _ideogram4_inputs(draw: Draw, n: int) -> dict[str, Any]:
    from diffusers.models.transformers import transformer_ideogram4 as source

    text, length = 9, 9 + draw.tokens
    grid = torch.cartesian_prod(torch.arange(draw.rows), torch.arange(draw.cols))
    positions = torch.zeros(length, 3, dtype=torch.int64)
    positions[:text] = torch.arange(text)[:, None]
    positions[text:, 1:] = text + grid
    kinds = torch.full((draw.batch, length), source.OUTPUT_IMAGE_INDICATOR)
    kinds[:, :text] = source.LLM_TOKEN_INDICATOR
    return {
        "hidden_states": draw.latents(draw.batch, length, 6),
        "timestep": draw.time(1.0, ascending=True),
        "encoder_hidden_states": draw.content(draw.batch, length, 40),
        "position_ids": positions.repeat(draw.batch, 1, 1),
        "segment_ids": torch.zeros(draw.batch, length, dtype=torch.int64),
        "indicator": kinds,
        "return_dict": False,
    }


def _longcat_audio(n: int) -> Any:
    return D.LongCatAudioDiTTransformer(dit_dim=24, dit_depth=n, dit_heads=2, dit_text_dim=40, latent_dim=6)


def _longcat_audio_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        "hidden_states": draw.latents(draw.batch, draw.tokens, 6),
        "encoder_hidden_states": draw.content(draw.batch, 9, 40),
        "encoder_attention_mask": draw.mask(9, 7).bool(),
        "timestep": draw.time(1.0),
        "attention_mask": draw.mask(draw.tokens, draw.tokens).bool(),
        "latent_cond": draw.content(draw.batch, draw.tokens, 6),
        "return_dict": False,
    }


def _lumina_next(n: int) -> Any:
    return D.LuminaNextDiT2DModel(
        sample_size=16,
        hidden_size=24,
        num_layers=n,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=40,
    )


def _lumina_next_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        **picture(draw, 4, 9, 40),
        "timestep": draw.time(1.0, ascending=True),
        "encoder_mask": draw.mask(9, 7),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, 16, 16),
        "cross_attention_kwargs": {},
    }


def _ace_step(n: int) -> Any:
    return D.AceStepTransformer1DModel(
        hidden_size=24,
        intermediate_size=56,
        num_hidden_layers=n,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        in_channels=10,
        audio_acoustic_hidden_dim=4,
        sliding_window=6,
    )


def _ace_step_inputs(draw: Draw, n: int) -> dict[str, Any]:
    time = draw.time(1.0)
    return {
        "hidden_states": draw.latents(draw.batch, draw.tokens, 4),
        "timestep": time,
        "timestep_r": time.clone(),
        "encoder_hidden_states": draw.content(draw.batch, 9, 24),
        "context_latents": draw.content(draw.batch, draw.tokens, 6),
        "return_dict": False,
    }


def _stable_audio3(n: int) -> Any:
    return D.StableAudio3DiTModel(
        io_channels=6,
        embed_dim=24,
        depth=n,
        num_heads=2,
        cond_token_dim=40,
        global_cond_dim=20,
        local_add_cond_dim=7,
        timestep_features_dim=16,
        num_memory_tokens=2,
    )


def _stable_audio3_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        "hidden_states": draw.latents(draw.batch, 6, draw.tokens),
        "timestep": draw.time(1.0),
        "encoder_hidden_states": draw.content(draw.batch, 9, 40),
        "global_hidden_states": draw.content(draw.batch, 20),
        "encoder_attention_mask": draw.mask(9, 7).bool(),
        "local_add_cond": draw.content(draw.batch, 7, draw.tokens),
        "return_dict": False,
    }


def _music3(n: int) -> Any:
    return D.MiniMaxMusic3Transformer1DModel(
        in_channels=6,
        condition_dim=20,
        num_layers=n,
        num_attention_heads=2,
        attention_head_dim=12,
        ff_inner_dim=56,
        rotary_dim=4,
        fourier_embedding_dim=16,
    )


def _music3_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        "hidden_states": draw.latents(draw.batch, 6, draw.tokens),
        "timestep": draw.time(1.0, ascending=True),
        "encoder_hidden_states": draw.content(draw.batch, draw.tokens, 20),
        "return_dict": False,
    }


def _anyflow(n: int) -> Any:
    return D.AnyFlowTransformer3DModel(**WAN, num_layers=n, rope_max_seq_len=32)


def _anyflow_inputs(draw: Draw, n: int) -> dict[str, Any]:
    inputs = video(draw, 4, 9, 40)
    inputs["hidden_states"] = inputs["hidden_states"].transpose(1, 2)
    time = inputs["timestep"][:, None].repeat(1, FRAMES)
    return {**inputs, "timestep": time, "r_timestep": time - 100.0}


def _nucleus(n: int) -> Any:
    model = D.NucleusMoEImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=n,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(8, 4, 4),
        mlp_ratio=8.0,
        num_experts=4,
        moe_intermediate_dim=20,
        capacity_factors=2.0,
        dense_moe_strategy="leave_first_block_dense",
    )
    for parameter in model.parameters():
        if parameter.ndim == 3:  # the experts come uninitialised
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def _nucleus_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        "hidden_states": draw.latents(draw.batch, draw.tokens, 16),
        "img_shapes": [(1, draw.rows, draw.cols)] * draw.batch,
        "encoder_hidden_states": draw.content(draw.batch, 7, 24),
        "encoder_hidden_states_mask": draw.mask(7, 7),
        "timestep": draw.time(1.0, dtype=draw.dtype),
        "return_dict": False,
    }


def _prior(n: int) -> Any:
    return D.PriorTransformer(
        num_attention_heads=2, attention_head_dim=12, num_layers=n, embedding_dim=20, num_embeddings=7
    )


def _prior_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        "hidden_states": draw.latents(draw.batch, 20),
        "timestep": draw.time(),
        "proj_embedding": draw.content(draw.batch, 20),
        "encoder_hidden_states": draw.content(draw.batch, 7, 20),
        "attention_mask": draw.mask(7, 5).bool(),
        "return_dict": False,
    }


_ALL: dict[str, Callable[..., TinyModel]] = {
    "flux3": case(_flux3, lambda d, n: packed(d, 8, 9, 24, 4), "mode_blocks.image", "single_transformer_blocks"),
    "joyimage": case(_joyimage, lambda d, n: video(d, 4, 9, 40), "double_blocks"),
    "motif_video": case(
        _motif,
        lambda d, n: {**video(d, 5, 9, 40), "encoder_attention_mask": d.mask(9, 7)},
        "transformer_blocks",
        "single_transformer_blocks",
    ),
    "ernie_image": case(_ernie, _ernie_inputs, "layers"),
    "ideogram4": case(_ideogram4, _ideogram4_inputs, "layers"),
    "longcat_audio": case(_longcat_audio, _longcat_audio_inputs, "blocks"),
    "lumina_next": case(_lumina_next, _lumina_next_inputs, "layers"),
    "ace_step": case(_ace_step, _ace_step_inputs, "layers", changing=("hidden_states", "timestep", "timestep_r")),
    "stable_audio3": case(_stable_audio3, _stable_audio3_inputs, "transformer_blocks"),
    "minimax_music3": case(_music3, _music3_inputs, "transformer_blocks"),
    "anyflow": case(_anyflow, _anyflow_inputs, "blocks", changing=("hidden_states", "timestep", "r_timestep")),
    "nucleus_moe": case(_nucleus, _nucleus_inputs, "transformer_blocks", fullgraph=False, dynamo=SCALARS),
    "prior": case(_prior, _prior_inputs, "transformer_blocks"),
}
WIDE_MORE = existing(_ALL, {"flux3": "Flux3Transformer2DModel"})
"""Builders of the less common classes."""
