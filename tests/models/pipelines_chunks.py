"""Whole tiny pipelines that run several loops in one generation, or that make sound."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers as D
import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from torch import Tensor, nn

from tests.models.pipelines import hunyuan_vae
from tests.models.pipelines_image import picture
from tests.models.pipelines_video import changed, text, wan_vae
from tests.models.tiny import seeded
from tests.models.tiny_pipeline import Request, TinyPipeline, quiet
from tests.models.wide import WIDE


class Statistics(nn.Module):
    """What a pipeline asks of an autoencoder that it does not run: the statistics of its latents, its sizes."""

    def __init__(self, channels: int, config: dict[str, Any], **sizes: int) -> None:
        super().__init__()
        self.register_buffer("latents_mean", torch.zeros(channels))
        self.register_buffer("latents_std", torch.ones(channels))
        self.config = SimpleNamespace(**config)
        for name, size in sizes.items():
            setattr(self, name, size)

    device = torch.device("cpu")
    dtype = torch.float32


def ltx2(seed: int = 0, layers: int = 6) -> TinyPipeline:
    """Video and sound in one model; three calls per step, two of them of half the batch, with the same prompt."""
    connectors = seeded(
        lambda: LTX2TextConnectors(
            caption_channels=40,
            text_proj_in_factor=1,
            video_connector_num_attention_heads=2,
            video_connector_attention_head_dim=20,
            video_connector_num_layers=1,
            video_connector_num_learnable_registers=None,
            audio_connector_num_attention_heads=2,
            audio_connector_attention_head_dim=20,
            audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=None,
        ),
        seed + 1,
    )
    audio = {"sample_rate": 16000, "mel_hop_length": 160, "mel_bins": 20, "latent_channels": 1}
    pipe = D.LTX2Pipeline(
        transformer=WIDE["ltx2"](layers, seed).module,
        vae=Statistics(6, {"scaling_factor": 1.0}, spatial_compression_ratio=32, temporal_compression_ratio=8),
        audio_vae=Statistics(5, audio, mel_compression_ratio=4, temporal_compression_ratio=4),
        scheduler=D.FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
        connectors=connectors,
        vocoder=None,
    )

    def request(r: Request) -> dict[str, Any]:
        guided = {"guidance_scale": 3.0, "stg_scale": 1.0, "modality_scale": 2.0} if r.cfg else {}
        plain = {"guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0}
        sound = {f"audio_{name}": value for name, value in {**plain, **guided}.items()}
        return {**text(r), **r.pixels(32), **plain, **guided, **sound, "num_frames": 17}

    extra = {"output_type": "latent", "spatio_temporal_guidance_blocks": [1], "guidance_rescale": 0.0}
    names = ("cond_uncond", "uncond_stg", "uncond_modality")
    return TinyPipeline(quiet(pipe), request, False, names, {**extra, "audio_guidance_rescale": 0.0})


def helios(seed: int = 0, layers: int = 6) -> TinyPipeline:
    """Two chunks of a video, a loop for each, with the same prompt."""
    pipe = D.HeliosPipeline(
        transformer=WIDE["helios"](layers, seed).module,
        vae=wan_vae(),
        scheduler=D.HeliosScheduler(stages=1, stage_range=[0, 1]),
        text_encoder=None,
        tokenizer=None,
    )

    def request(r: Request) -> dict[str, Any]:
        kwargs: dict[str, Any] = {"prompt_embeds": r.content(9, 40), "num_frames": 18}
        if r.cfg:
            kwargs["negative_prompt_embeds"] = r.content(9, 40, negative=True)
        return {**kwargs, **r.pixels(16), "guidance_scale": 5.0 if r.cfg else 1.0}

    extra = {"output_type": "latent", "num_latent_frames_per_chunk": 3, "history_sizes": [4, 2, 1]}
    return TinyPipeline(quiet(pipe), request, True, ("cond", "uncond"), extra)


class PictureEncoder(nn.Module):
    """Stands for an encoder of input pictures: means of a few patches, repeated to the width."""

    device = torch.device("cpu")
    dtype = torch.float32

    def forward(self, pixel_values: Tensor) -> Any:
        means = nn.functional.adaptive_avg_pool2d(pixel_values, (2, 2)).flatten(2).transpose(1, 2)
        return SimpleNamespace(last_hidden_state=means.repeat(1, 1, 4))


class PictureExtractor:
    def __call__(self, images: Tensor, **_: Any) -> Any:
        from transformers import BatchFeature

        return BatchFeature({"pixel_values": images})


def framepack(seed: int = 0, layers: int = 4) -> TinyPipeline:
    """Two sections of a video, a loop for each; separate guidance without names."""
    pipe = D.HunyuanVideoFramepackPipeline(
        transformer=WIDE["framepack"](layers, seed).module,
        vae=hunyuan_vae(),
        scheduler=D.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        image_encoder=PictureEncoder(),
        feature_extractor=PictureExtractor(),
    )

    def request(r: Request) -> dict[str, Any]:
        def prompt(prefix: str, negative: bool) -> dict[str, Any]:
            return {
                f"{prefix}prompt_embeds": r.content(11, 16, negative=negative),
                f"{prefix}pooled_prompt_embeds": r.content(8, negative=negative),
                f"{prefix}prompt_attention_mask": torch.ones(r.batch, 11, dtype=torch.int64),
            }

        kwargs = {**prompt("", False), **(prompt("negative_", True) if r.cfg else {})}
        return {
            **kwargs,
            **r.pixels(16),
            "image": picture(r, 16),
            "num_frames": 18,
            "latent_window_size": 3,
            "true_cfg_scale": 2.0 if r.cfg else 1.0,
        }

    return TinyPipeline(quiet(pipe), request, True, extra={"output_type": "latent"})


def stable_audio(seed: int = 0, layers: int = 6) -> TinyPipeline:
    """Sound, of one size only; a scheduler whose noise comes from a tree; ends without saying so."""
    pipe = D.StableAudioPipeline(
        transformer=changed(WIDE["stable_audio"], layers, seed, global_states_input_dim=48),
        vae=seeded(
            lambda: D.AutoencoderOobleck(
                encoder_hidden_size=6,
                downsampling_ratios=[1, 2],
                channel_multiples=[2, 4],
                decoder_channels=3,
                decoder_input_channels=6,
                audio_channels=2,
                sampling_rate=4,
            ),
            seed=100,
        ),
        scheduler=D.EulerDiscreteScheduler(prediction_type="v_prediction"),
        text_encoder=None,
        tokenizer=None,
        projection_model=seeded(lambda: StableAudioProjectionModel(24, 24, 0, 32), seed + 1),
    )

    for part in pipe.vae.modules():
        if hasattr(part, "weight_g"):  # a module with this form of its weights cannot be copied
            nn.utils.remove_weight_norm(part)

    def request(r: Request) -> dict[str, Any]:
        kwargs: dict[str, Any] = {"prompt_embeds": r.content(9, 24), "attention_mask": torch.ones(r.batch, 9).long()}
        if r.cfg:
            kwargs["negative_prompt_embeds"] = r.content(9, 24, negative=True)
            kwargs["negative_attention_mask"] = torch.ones(r.batch, 9).long()
        return {**kwargs, "audio_end_in_s": 8.0, "guidance_scale": 7.0 if r.cfg else 1.0}

    return TinyPipeline(quiet(pipe), request, extra={"output_type": "latent"})


PIPELINES_CHUNKS: dict[str, Callable[..., TinyPipeline]] = {
    "ltx2": ltx2,
    "helios": helios,
    "framepack": framepack,
    "stable_audio": stable_audio,
}
