"""Whole tiny pipelines for videos and sound, continued: the ways of calling that `pipelines` does not show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as D
import torch
from diffusers.guiders import ClassifierFreeGuidance

from tests.models.pipelines import hunyuan_video, wan
from tests.models.tiny import TinyModel, seeded
from tests.models.tiny_pipeline import Request, TinyPipeline, quiet, wan_autoencoder
from tests.models.variants import wan_two
from tests.models.wide import WIDE


def changed(build: Callable[..., TinyModel], layers: int, seed: int, **config: Any) -> Any:
    """A tiny transformer with another value here and there in its configuration."""
    module: Any = build(layers, seed).module
    return seeded(lambda: type(module).from_config({**module.config, **config}), seed)


def hunyuan_video_plain(seed: int = 0, layers: int = 4) -> TinyPipeline:
    """The guidance is an input of the model: one call per step."""
    tiny = hunyuan_video(seed, layers)

    def request(r: Request) -> dict[str, Any]:
        return tiny.request(Request(r.prompt_seed, r.grid, r.steps, False, r.batch))

    return TinyPipeline(tiny.pipe, request, False, ("cond",), tiny.extra)


def wan_expanded_time(seed: int = 0, layers: int = 6) -> TinyPipeline:
    """One time per token, in a new tensor."""
    tiny = wan(seed, layers)
    tiny.pipe.register_to_config(expand_timesteps=True)
    return tiny


def wan_video_to_video(seed: int = 0, layers: int = 6) -> TinyPipeline:
    """Starts in the middle of the schedule; separate guidance without names."""
    pipe = D.WanVideoToVideoPipeline(**{**wan_parts(seed, layers), "vae": wan_autoencoder()})

    def request(r: Request) -> dict[str, Any]:
        size = r.pixels(16)
        frames = torch.rand(r.batch, 9, 3, *size.values(), generator=torch.Generator().manual_seed(3))
        kwargs: dict[str, Any] = {"prompt_embeds": r.content(9, 40), "video": frames, "strength": 0.8}
        if r.cfg:
            kwargs["negative_prompt_embeds"] = r.content(9, 40, negative=True)
        return {**kwargs, **size, "guidance_scale": 5.0 if r.cfg else 1.0}

    return TinyPipeline(quiet(pipe), request, True, extra={"output_type": "latent"})


def wan_parts(seed: int, layers: int) -> dict[str, Any]:
    parts = wan(seed, layers).pipe.components
    return {name: parts[name] for name in ("transformer", "scheduler", "text_encoder", "tokenizer")}


def hunyuan_video15(seed: int = 0, layers: int = 4) -> TinyPipeline:
    """A guider names the calls; two text encoders with masks, whose valid tokens are picked by their values."""
    pipe = D.HunyuanVideo15Pipeline(
        transformer=changed(WIDE["hunyuan_video15"], layers, seed, in_channels=9),
        vae=seeded(
            lambda: D.AutoencoderKLHunyuanVideo15(
                latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1, spatial_compression_ratio=16
            ),
            seed=100,
        ),
        scheduler=D.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )
    pipe.vision_num_semantic_tokens = 6

    def request(r: Request) -> dict[str, Any]:
        def prompt(prefix: str, negative: bool) -> dict[str, Any]:
            return {
                f"{prefix}prompt_embeds": r.content(11, 24, negative=negative),
                f"{prefix}prompt_embeds_mask": (torch.arange(11) < 9).long().repeat(r.batch, 1),
                f"{prefix}prompt_embeds_2": r.content(7, 20, negative=negative),
                f"{prefix}prompt_embeds_mask_2": (torch.arange(7) < 5).long().repeat(r.batch, 1),
            }

        pipe.guider._enabled = r.cfg
        return {**prompt("", False), **(prompt("negative_", True) if r.cfg else {}), "num_frames": 9, **r.pixels(16)}

    return TinyPipeline(quiet(pipe), request, True, ("pred_cond", "pred_uncond"), {"output_type": "latent"})


def wan_vae() -> Any:
    """The video autoencoder of Wan, with four channels."""
    return seeded(
        lambda: D.AutoencoderKLWan(
            base_dim=3,
            z_dim=4,
            dim_mult=[1] * 4,
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        seed=100,
    )


def motif_video(seed: int = 0, layers: int = 4) -> TinyPipeline:
    """A guider names the calls; double and single blocks."""
    pipe = D.MotifVideoPipeline(
        transformer=changed(WIDE["motif_video"], layers, seed, in_channels=9),
        vae=wan_vae(),
        scheduler=D.FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )

    def request(r: Request) -> dict[str, Any]:
        kwargs: dict[str, Any] = {
            "prompt_embeds": r.content(9, 40),
            "prompt_attention_mask": torch.ones(r.batch, 9, dtype=torch.int64),
            "num_frames": 9,
        }
        if r.cfg:
            kwargs["negative_prompt_embeds"] = r.content(9, 40, negative=True)
            kwargs["negative_prompt_attention_mask"] = torch.ones(r.batch, 9, dtype=torch.bool)
        pipe.guider._enabled = r.cfg
        return {**kwargs, **r.pixels(16)}

    return TinyPipeline(quiet(pipe), request, True, ("pred_cond", "pred_uncond"), {"output_type": "latent"})


def ltx(seed: int = 0, layers: int = 6) -> TinyPipeline:
    """Batched guidance under one name; the sizes of the grid are numbers among the arguments."""
    pipe = D.LTXPipeline(
        transformer=WIDE["ltx"](layers, seed).module,
        vae=None,
        scheduler=D.FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
    )

    def request(r: Request) -> dict[str, Any]:
        kwargs = text(r)
        return {**kwargs, **r.pixels(32), "num_frames": 17, "guidance_scale": 3.0 if r.cfg else 1.0}

    return TinyPipeline(quiet(pipe), request, False, ("cond_uncond",), {"output_type": "latent"})


def text(r: Request) -> dict[str, Any]:
    """Prompts with masks that have a few tokens of padding."""
    mask = (torch.arange(9) < 7).long().repeat(r.batch, 1)
    kwargs: dict[str, Any] = {"prompt_embeds": r.content(9, 40), "prompt_attention_mask": mask}
    if r.cfg:
        kwargs["negative_prompt_embeds"] = r.content(9, 40, negative=True)
        kwargs["negative_prompt_attention_mask"] = mask.clone()
    return kwargs


PIPELINES_VIDEO: dict[str, Callable[..., TinyPipeline]] = {
    "hunyuan_video_plain": hunyuan_video_plain,
    "wan_two": wan_two,
    "wan_expanded_time": wan_expanded_time,
    "wan_video_to_video": wan_video_to_video,
    "hunyuan_video15": hunyuan_video15,
    "motif_video": motif_video,
    "ltx": ltx,
}
