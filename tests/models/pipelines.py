"""Whole pipelines of diffusers around the tiny transformers: no text encoder, no tokenizer, no network.

Prompt embeddings are passed in, results are latents (DiT: decoded pictures), and every component has its own seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as D
import torch

from tests.models import transformers as T
from tests.models.tiny import cast, seeded
from tests.models.tiny_pipeline import Request, TinyPipeline, autoencoder, quiet, wan_autoencoder


def flux(seed: int = 0, layers: int = 6, *, scheduler: Any = None, dtype: torch.dtype = torch.float32) -> TinyPipeline:
    """Two block lists; separate guidance with contexts `cond` and `uncond`; time divided by 1000 in a new tensor."""
    pipe = D.FluxPipeline(
        transformer=T.flux(layers, seed, dtype).module,
        vae=autoencoder(1),
        scheduler=scheduler or D.FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )

    def request(r: Request) -> dict[str, Any]:
        kwargs = {"prompt_embeds": r.content(9, 24).to(dtype), "pooled_prompt_embeds": r.content(40).to(dtype)}
        if r.cfg:
            kwargs["negative_prompt_embeds"] = r.content(9, 24, negative=True).to(dtype)
            kwargs["negative_pooled_prompt_embeds"] = r.content(40, negative=True).to(dtype)
        return {**kwargs, **r.pixels(2), "true_cfg_scale": 3.0 if r.cfg else 1.0}

    return TinyPipeline(quiet(pipe), request, True, ("cond", "uncond"), {"output_type": "latent"})


def sd3(seed: int = 0, layers: int = 6, *, scheduler: Any = None, dtype: torch.dtype = torch.float32) -> TinyPipeline:
    """Batched guidance without a context; time is a view of the schedule."""
    pipe = D.StableDiffusion3Pipeline(
        transformer=T.sd3(layers, seed, dtype).module,
        vae=autoencoder(4),
        scheduler=scheduler or D.FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )

    def request(r: Request) -> dict[str, Any]:
        kwargs = {"prompt_embeds": r.content(9, 24).to(dtype), "pooled_prompt_embeds": r.content(40).to(dtype)}
        if r.cfg:
            kwargs["negative_prompt_embeds"] = r.content(9, 24, negative=True).to(dtype)
            kwargs["negative_pooled_prompt_embeds"] = r.content(40, negative=True).to(dtype)
        return {**kwargs, **r.pixels(2), "guidance_scale": 5.0 if r.cfg else 1.0}

    return TinyPipeline(quiet(pipe), request, extra={"output_type": "latent"})


def qwen(seed: int = 0, layers: int = 6, *, scheduler: Any = None, dtype: torch.dtype = torch.float32) -> TinyPipeline:
    """Separate guidance with another text length for the negative prompt."""
    vae = seeded(
        lambda: D.AutoencoderKLQwenImage(
            base_dim=24,
            z_dim=4,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        seed=100,
    )
    pipe = D.QwenImagePipeline(
        transformer=T.qwen(layers, seed, dtype).module,
        vae=vae,
        scheduler=scheduler or D.FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
    )

    def request(r: Request) -> dict[str, Any]:
        kwargs: dict[str, Any] = {
            "prompt_embeds": r.content(7, 24).to(dtype),
            "prompt_embeds_mask": torch.ones(r.batch, 7, dtype=torch.int64),
        }
        if r.cfg:
            kwargs["negative_prompt_embeds"] = r.content(5, 24, negative=True).to(dtype)
            kwargs["negative_prompt_embeds_mask"] = torch.ones(r.batch, 5, dtype=torch.int64)
        return {**kwargs, **r.pixels(8), "true_cfg_scale": 4.0 if r.cfg else 1.0}

    return TinyPipeline(quiet(pipe), request, True, ("cond", "uncond"), {"output_type": "latent"})


def wan(
    seed: int = 0,
    layers: int = 6,
    *,
    scheduler: Any = None,
    dtype: torch.dtype = torch.float32,
    boundary_ratio: float | None = None,
) -> TinyPipeline:
    """Separate guidance with step numbers in the context; `boundary_ratio` adds a second model for late steps."""
    second = None if boundary_ratio is None else T.wan(layers, seed + 1, dtype).module
    pipe = D.WanPipeline(
        transformer=T.wan(layers, seed, dtype).module,
        transformer_2=second,
        boundary_ratio=boundary_ratio,
        vae=wan_autoencoder(),
        scheduler=scheduler
        or D.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        text_encoder=None,
        tokenizer=None,
    )

    def request(r: Request) -> dict[str, Any]:
        kwargs: dict[str, Any] = {"prompt_embeds": r.content(9, 40).to(dtype), "num_frames": 9}
        if r.cfg:
            kwargs["negative_prompt_embeds"] = r.content(9, 40, negative=True).to(dtype)
        return {**kwargs, **r.pixels(16), "guidance_scale": 6.0 if r.cfg else 1.0}

    return TinyPipeline(quiet(pipe), request, True, ("cond", "uncond"), {"output_type": "latent"})


def pixart(
    seed: int = 0, layers: int = 6, *, scheduler: Any = None, dtype: torch.dtype = torch.float32
) -> TinyPipeline:
    """Batched guidance without a context, multistep scheduler, padded text mask."""
    pipe = D.PixArtSigmaPipeline(
        transformer=T.pixart(layers, seed, dtype).module,
        vae=autoencoder(4, blocks=4, shift_factor=None),
        scheduler=scheduler or D.DPMSolverMultistepScheduler(),
        text_encoder=None,
        tokenizer=None,
    )

    def request(r: Request) -> dict[str, Any]:
        mask = (torch.arange(11) < 9).to(dtype).repeat(r.batch, 1)
        kwargs: dict[str, Any] = {"prompt_embeds": r.content(11, 40).to(dtype), "prompt_attention_mask": mask}
        if r.cfg:
            kwargs["negative_prompt_embeds"] = r.content(11, 40, negative=True).to(dtype)
            kwargs["negative_prompt_attention_mask"] = mask.clone()
        return {**kwargs, **r.pixels(16), "guidance_scale": 4.5 if r.cfg else 1.0}

    extra = {"output_type": "latent", "negative_prompt": None, "use_resolution_binning": False}
    return TinyPipeline(quiet(pipe), request, extra=extra)


def cogvideox(
    seed: int = 0, layers: int = 6, *, scheduler: Any = None, dtype: torch.dtype = torch.float32
) -> TinyPipeline:
    """Batched guidance under the one context `cond_uncond`."""
    vae = seeded(
        lambda: D.AutoencoderKLCogVideoX(
            in_channels=3,
            out_channels=3,
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8,) * 4,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        ),
        seed=100,
    )
    pipe = D.CogVideoXPipeline(
        transformer=T.cogvideox(layers, seed, dtype).module,
        vae=vae,
        scheduler=scheduler or D.CogVideoXDDIMScheduler(),
        text_encoder=None,
        tokenizer=None,
    )

    def request(r: Request) -> dict[str, Any]:
        kwargs: dict[str, Any] = {"prompt_embeds": r.content(9, 40).to(dtype), "num_frames": 9}
        if r.cfg:
            kwargs["negative_prompt_embeds"] = r.content(9, 40, negative=True).to(dtype)
        return {**kwargs, **r.pixels(16), "guidance_scale": 6.0 if r.cfg else 1.0}

    extra = {"output_type": "latent", "max_sequence_length": 9}
    return TinyPipeline(quiet(pipe), request, False, ("cond_uncond",), extra)


def hunyuan_vae() -> Any:
    """The video autoencoder of HunyuanVideo and what is built on it."""
    return seeded(
        lambda: D.AutoencoderKLHunyuanVideo(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            down_block_types=("HunyuanVideoDownBlock3D",) * 4,
            up_block_types=("HunyuanVideoUpBlock3D",) * 4,
            block_out_channels=(8,) * 4,
            layers_per_block=1,
            norm_num_groups=4,
            spatial_compression_ratio=8,
            temporal_compression_ratio=4,
        ),
        seed=100,
    )


def hunyuan_video(
    seed: int = 0, layers: int = 4, *, scheduler: Any = None, dtype: torch.dtype = torch.float32
) -> TinyPipeline:
    """Embedded guidance, and separate true guidance with contexts on request."""
    pipe = D.HunyuanVideoPipeline(
        transformer=T.hunyuan_video(layers, seed, dtype).module,
        vae=hunyuan_vae(),
        scheduler=scheduler or D.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )

    def request(r: Request) -> dict[str, Any]:
        def prompt(prefix: str, negative: bool) -> dict[str, Any]:
            return {
                f"{prefix}prompt_embeds": r.content(11, 16, negative=negative).to(dtype),
                f"{prefix}pooled_prompt_embeds": r.content(8, negative=negative).to(dtype),
                f"{prefix}prompt_attention_mask": torch.ones(r.batch, 11, dtype=torch.int64),
            }

        kwargs = {**prompt("", False), **(prompt("negative_", True) if r.cfg else {}), "num_frames": 9}
        return {**kwargs, **r.pixels(16), "true_cfg_scale": 2.0 if r.cfg else 1.0}

    return TinyPipeline(quiet(pipe), request, True, ("cond", "uncond"), {"output_type": "latent"})


def dit(seed: int = 0, layers: int = 6, *, scheduler: Any = None, dtype: torch.dtype = torch.float32) -> TinyPipeline:
    """Class-conditional, batched guidance, one size only (`size` has no effect); returns decoded pictures."""
    pipe = D.DiTPipeline(
        transformer=T.dit(layers, seed, dtype).module,
        vae=cast(autoencoder(4, shift_factor=None), dtype),
        scheduler=scheduler or D.DDIMScheduler(),
    )

    def request(r: Request) -> dict[str, Any]:
        labels = [(r.prompt_seed + row) % 1000 for row in range(r.batch)]
        return {"class_labels": labels, "guidance_scale": 4.0 if r.cfg else 1.0}

    return TinyPipeline(quiet(pipe), request, extra={"output_type": "pt"})


PIPELINES: dict[str, Callable[..., TinyPipeline]] = {
    "flux": flux,
    "sd3": sd3,
    "qwen": qwen,
    "wan": wan,
    "pixart": pixart,
    "cogvideox": cogvideox,
    "hunyuan_video": hunyuan_video,
    "dit": dit,
}
"""Builders of the whole pipelines."""
