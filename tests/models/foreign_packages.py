"""Transformers of the package `transformers`, tiny and random: one that denoises, one that only encodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniDiTConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniToken2WavDiTModel

from tests.models.foreign import F32
from tests.models.tiny import Draw, TinyModel, seeded

MEL, SPEAKER = 10, 12


class Guided(nn.Module):
    """Mel spectrogram from codes: the model doubles the batch by itself, for guidance."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        config = Qwen2_5OmniDiTConfig(
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            head_dim=16,
            ff_mult=2,
            emb_dim=14,
            block_size=6,
            look_ahead_layers=[1],
            look_backward_layers=[0],
            num_embeds=40,
            mel_dim=MEL,
            dropout=0.0,
            enc_emb_dim=SPEAKER,
            enc_dim=8,
            enc_channels=[16, 16, 16, 16, 48],
            enc_attention_channels=8,
            enc_se_channels=8,
            attn_implementation="sdpa",
        )
        self.dit = Qwen2_5OmniToken2WavDiTModel(config)

    def forward(self, hidden_states: Tensor, time_step: Tensor, **conditions: Tensor) -> Tensor:
        both = self.dit(hidden_states=hidden_states, time_step=time_step, apply_cfg=True, **conditions)
        given, null = both.chunk(2)
        return given + 0.5 * (given - null)


def token_to_wav(layers: int = 4, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
    """The token-to-wav DiT of Qwen2.5-Omni."""

    def make(draw: Draw) -> dict[str, Any]:
        codes = torch.randint(0, 40, (draw.batch, draw.tokens), generator=draw.generator)
        length = 2 * draw.tokens
        return {
            "hidden_states": draw.latents(draw.batch, length, MEL),
            "condition_vector": draw.content(draw.batch, 11, MEL),
            "speaker_embedding": draw.content(draw.batch, 1, SPEAKER).expand(-1, length, -1),
            "quantized_code": codes,
            "time_step": draw.time(1.0).to(draw.dtype),
        }

    module = seeded(lambda: Guided(layers), seed, dtype)
    return TinyModel(module, make, (("dit.transformer_blocks", layers),), ("hidden_states", "time_step"), dtype)


def picture_encoder(layers: int = 4, seed: int = 0, dtype: torch.dtype = F32) -> TinyModel:
    """DINOv2 on pictures that change a little, such as the frames of a video: no time, an output that is a mapping."""
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=layers, num_attention_heads=2, mlp_ratio=2, image_size=20, patch_size=4
    )

    def make(draw: Draw) -> dict[str, Any]:
        return {"pixel_values": draw.latents(draw.batch, 3, 4 * draw.rows, 4 * draw.cols)}

    module = seeded(lambda: Dinov2Model(config), seed, dtype)
    return TinyModel(module, make, (("encoder.layer", layers),), ("pixel_values",), dtype)


PACKAGES: dict[str, Callable[..., TinyModel]] = {"token_to_wav": token_to_wav, "picture_encoder": picture_encoder}
"""Builders, by name."""
