"""Tiny transformers that are parts of other models, decode other things than pictures, or keep caches themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as D
import torch
from diffusers.models import DualTransformer2DModel
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

from tests.models.tiny import Draw, TinyModel, case
from tests.models.wide_inputs import FRAMES, existing


def _t5_film(n: int) -> Any:
    return D.T5FilmDecoder(
        input_dims=6, targets_length=64, d_model=24, num_layers=n, num_heads=2, d_kv=12, d_ff=56, dropout_rate=0.0
    )


def _t5_film_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        "encodings_and_masks": [(draw.content(draw.batch, 9, 24), draw.mask(9, 7))],
        "decoder_input_tokens": draw.latents(draw.batch, draw.tokens, 6),
        "decoder_noise_time": draw.time(1.0),
    }


_BASIC: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "norm_num_groups": 2,
    "cross_attention_dim": 40,
}


def _transformer_2d(n: int) -> Any:
    return D.Transformer2DModel(num_layers=n, **_BASIC)


def _dreamlite(n: int) -> Any:
    return D.DreamLiteTransformer2DModel(num_layers=n, qk_norm="rms_norm", num_kv_heads=2, **_BASIC)


def _dual(n: int) -> Any:
    """Two models side by side, the second one first; one of them is the trunk."""
    return DualTransformer2DModel(num_layers=n, **_BASIC)


def _feature_map(text: int) -> Callable[[Draw, int], dict[str, Any]]:
    def make(draw: Draw, n: int) -> dict[str, Any]:
        return {
            "hidden_states": draw.latents(draw.batch, 4, draw.rows, draw.cols),
            "encoder_hidden_states": draw.content(draw.batch, text, 40),
            "return_dict": False,
        }

    return make


def _temporal(n: int) -> Any:
    given = {name: value for name, value in _BASIC.items() if name != "cross_attention_dim"}
    return D.TransformerTemporalModel(num_layers=n, **given)


def _temporal_inputs(draw: Draw, n: int) -> dict[str, Any]:
    return {
        "hidden_states": draw.latents(draw.batch * FRAMES, 4, draw.rows, draw.cols),
        "num_frames": FRAMES,
        "return_dict": False,
    }


def _depth_decoder(n: int) -> Any:
    return D.MiniMaxMusic3RVQDepthDecoder(
        hidden_size=24,
        num_layers=n,
        num_attention_heads=2,
        intermediate_size=56,
        audio_vocab_size=10,
        num_codebooks=3,
        max_position_embeddings=64,
    )


_TIMES = ("time_emb_bb_ca", "time_emb_local_latents")


def _proteina(n: int) -> Any:
    return D.RFD4ProteinaTransformer(
        nlayers=n,
        token_dim=24,
        nheads=2,
        dim_cond=20,
        pair_repr_dim=10,
        latent_dim=6,
        token_type_emb_dim=5,
        t_emb_dim=16,
        xt_pair_dist_dim=8,
        feats_seq=("xt_bb_ca", "xt_local_latents", "token_type"),
        feats_cond_seq=_TIMES,
        feats_pair_repr=("xt_bb_ca_pair_dists",),
        feats_pair_cond=_TIMES,
        tri_mult_c=12,
        num_sequence_classes=14,
    )


def _proteina_inputs(draw: Draw, n: int) -> dict[str, Any]:
    residues = (draw.batch, draw.tokens)
    return {
        "bb_ca": draw.latents(*residues, 3),
        "local_latents": draw.latents(*residues, 6),
        "bb_ca_time": draw.time(1.0, ascending=True),
        "local_latents_time": draw.time(1.0, ascending=True),
        "padding_mask": torch.ones(residues, dtype=torch.bool),
        "token_type": torch.randint(0, 7, residues, generator=draw.generator),
        "conditioning": {
            "is_in_context_conditioning": torch.zeros(residues, dtype=torch.bool),
            "supports_local_latent": torch.ones(residues, dtype=torch.bool),
        },
        "return_dict": False,
    }


def _anyflow_far(n: int) -> Any:
    return D.AnyFlowFARTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=40,
        freq_dim=16,
        ffn_dim=56,
        num_layers=n,
        rope_max_seq_len=64,
        chunk_partition=(1, FRAMES),
    )


def _anyflow_far_inputs(draw: Draw, n: int) -> dict[str, Any]:
    """The second chunk of a video: the keys and values of the first one are given."""
    cached, packed = 3 * FRAMES * 4 * draw.tokens, draw.tokens * FRAMES
    time = draw.time()[:, None].repeat(1, FRAMES)
    return {
        "hidden_states": draw.latents(draw.batch, FRAMES, 4, 4 * draw.rows, 4 * draw.cols),
        "timestep": time,
        "r_timestep": time - 100.0,
        "encoder_hidden_states": draw.content(draw.batch, 9, 40),
        "chunk_partition": [1, FRAMES],
        "kv_cache": [
            {
                "full_cache": draw.content(2, draw.batch, 2, cached, 16),
                "compressed_cache": draw.content(2, draw.batch, 2, packed, 16),
            }
            for _ in range(n)
        ],
        "kv_cache_flag": {"num_cached_chunks": 1, "is_cache_step": False},
        "return_dict": False,
    }


def _wan_animate2(n: int) -> Any:
    return D.WanAnimate2Transformer3DModel(
        text_len=11,
        in_dim=8,
        dim=32,
        ffn_dim=56,
        freq_dim=16,
        text_dim=40,
        out_dim=4,
        num_heads=2,
        num_layers=n,
        use_img_emb=False,
    )


def _wan_animate2_inputs(draw: Draw, n: int) -> dict[str, Any]:
    """A step of the generation pass: the keys and values of the reference pass are given."""
    frames = 2
    cache = WanAnimate2KVCache(n)
    for layer in cache.layer_caches:
        layer.store(*(draw.content(1, frames * draw.tokens, 2, 16) for _ in range(2)))
    grid = torch.tensor([[frames, draw.rows, draw.cols]])
    size = (frames, 2 * draw.rows, 2 * draw.cols)
    return {
        "hidden_states": [draw.latents(4, *size)],
        "timestep": draw.time()[:1],
        "encoder_hidden_states": [draw.content(9, 40)],
        "condition_latents": [draw.content(4, *size)],
        "kv_cache": cache,
        "kv_cache_mode": "cached",
        "seq_len": frames * draw.tokens,
        "reference_grid_sizes": grid,
        "origin_len": 4 * (frames - 1),
        "origin_area": [16 * draw.rows, 16 * draw.cols],
        "return_dict": False,
    }


_ALL: dict[str, Callable[..., TinyModel]] = {
    "t5_film": case(
        _t5_film, _t5_film_inputs, "decoders", changing=("decoder_input_tokens", "decoder_noise_time"), fullgraph=True
    ),
    "transformer_2d": case(_transformer_2d, _feature_map(9), "transformer_blocks", changing=("hidden_states",)),
    "dreamlite": case(_dreamlite, _feature_map(9), "transformer_blocks", changing=("hidden_states",)),
    "dual": case(_dual, _feature_map(77 + 257), "transformers.1.transformer_blocks", changing=("hidden_states",)),
    "temporal": case(_temporal, _temporal_inputs, "transformer_blocks", changing=("hidden_states",)),
    "depth_decoder": case(
        _depth_decoder,
        lambda d, n: {"inputs_embeds": d.latents(d.batch, d.tokens, 24)},
        "layers",
        changing=("inputs_embeds",),
    ),
    "proteina": case(
        _proteina,
        _proteina_inputs,
        "transformer_layers",
        changing=("bb_ca", "local_latents", "bb_ca_time", "local_latents_time"),
    ),
    "anyflow_far": case(
        _anyflow_far, _anyflow_far_inputs, "blocks", changing=("hidden_states", "timestep", "r_timestep")
    ),
    "wan_animate2": case(_wan_animate2, _wan_animate2_inputs, "blocks"),
}
WIDE_PARTS = existing(_ALL, {"proteina": "RFD4ProteinaTransformer"})
"""Builders of parts, of other decoders, and of models with caches of their own."""
