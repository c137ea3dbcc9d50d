"""Whole tiny pipelines for pictures, continued: the ways of calling a transformer that `pipelines` does not show."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers as D
import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from diffusers.pipelines.glm_image import GlmImagePipeline
from torch import Tensor

from tests.models.pipelines import flux, sd3
from tests.models.tiny import seeded
from tests.models.tiny_pipeline import Request, TinyPipeline, autoencoder, quiet
from tests.models.variants import flux_img2img, lumina2
from tests.models.wide import WIDE


def flux_plain(seed: int = 0, layers: int = 6, **more: Any) -> TinyPipeline:
    """The guidance is an input of the model: one call per step, under the context `cond`."""
    tiny = flux(seed, layers, **more)
    return TinyPipeline(tiny.pipe, without_guidance(tiny.request), False, ("cond",), tiny.extra)


def without_guidance(request: Callable[[Request], dict[str, Any]]) -> Callable[[Request], dict[str, Any]]:
    return lambda r: request(Request(r.prompt_seed, r.grid, r.steps, False, r.batch))


def _flux_family(cls: Any, seed: int, layers: int, more: Callable[[Request], dict[str, Any]], **parts: Any) -> Any:
    """A pipeline on the parts of the plain one; none of this family names its branches."""
    plain = flux(seed, layers)
    own = {**plain.pipe.components, "scheduler": copy.deepcopy(plain.pipe.scheduler), **parts}
    return TinyPipeline(
        quiet(cls(**own)), lambda r: {**plain.request(r), **more(r)}, True, extra={"output_type": "latent"}
    )


def picture(r: Request, unit: int = 2, seed: int = 3) -> Tensor:
    """An input picture, the same for the same size and batch."""
    size = r.pixels(unit)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(r.batch, 3, size["height"], size["width"], generator=generator)


def flux_inpaint(seed: int = 0, layers: int = 6) -> TinyPipeline:
    """Picture to picture with a mask: the latents are mixed with noise of the known part after every step."""

    def more(r: Request) -> dict[str, Any]:
        given = picture(r)
        return {"image": given, "mask_image": (given[:, :1] > 0.5).float(), "strength": 0.7}

    return _flux_family(D.FluxInpaintPipeline, seed, layers, more)


def flux_kontext(seed: int = 0, layers: int = 6) -> TinyPipeline:
    """The tokens of another picture follow those of the latents: what the blocks see is longer than the latents."""

    def more(r: Request) -> dict[str, Any]:
        size = r.pixels(2)
        return {"image": picture(r), "_auto_resize": False, "max_area": size["height"] * size["width"]}

    return _flux_family(D.FluxKontextPipeline, seed, layers, more)


def flux_controlnet(seed: int = 0, layers: int = 6) -> TinyPipeline:
    """A second network adds to the residuals of single blocks, anew in every step."""
    controlnet = seeded(
        lambda: D.FluxControlNetModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=40,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
        seed + 1,
    )
    return _flux_family(
        D.FluxControlNetPipeline, seed, layers, lambda r: {"control_image": picture(r)}, controlnet=controlnet
    )


def flux_ip_adapter(seed: int = 0, layers: int = 6) -> TinyPipeline:
    """Picture embeddings inside `joint_attention_kwargs`, a dictionary that the pipeline changes between the calls."""
    tiny = flux(seed, layers)
    model = tiny.transformer

    def adapter() -> Any:
        projection = ImageProjection(image_embed_dim=12, cross_attention_dim=24, num_image_text_embeds=2)
        return MultiIPAdapterImageProjection([projection])

    model.encoder_hid_proj = seeded(adapter, seed + 1)
    model.config.encoder_hid_dim_type = "ip_image_proj"
    processors = {}
    for name, processor in model.attn_processors.items():
        if not name.startswith("single"):
            processor = seeded(
                lambda: FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=24, num_tokens=(2,)), seed + 2
            )
        processors[name] = processor
    model.set_attn_processor(processors)

    def request(r: Request) -> dict[str, Any]:
        given = {"ip_adapter_image_embeds": [r.content(1, 12)]}
        if r.cfg:
            given["negative_ip_adapter_image_embeds"] = [r.content(1, 12, negative=True)]
        return {**tiny.request(r), **given}

    return TinyPipeline(tiny.pipe, request, True, ("cond", "uncond"), tiny.extra)


def sd3_skipped_layers(seed: int = 0, layers: int = 6, **more: Any) -> TinyPipeline:
    """In the first steps one more call, of half the batch and without the second block, with the same prompt."""
    tiny = sd3(seed, layers, **more)
    skip = {"skip_guidance_layers": [1], "skip_layer_guidance_start": -0.1, "skip_layer_guidance_stop": 0.6}
    return TinyPipeline(tiny.pipe, lambda r: {**tiny.request(r), **(skip if r.cfg else {})}, extra=tiny.extra)


def sana(seed: int = 0, layers: int = 6, *, scheduler: Any = None) -> TinyPipeline:
    """Linear attention, batched guidance, time in a new tensor."""
    pipe = D.SanaPipeline(
        transformer=WIDE["sana"](layers, seed).module,
        vae=None,
        scheduler=scheduler or D.FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
    )

    def request(r: Request) -> dict[str, Any]:
        kwargs: dict[str, Any] = {"prompt_embeds": r.content(9, 40)}
        kwargs["prompt_attention_mask"] = torch.ones(r.batch, 9)
        if r.cfg:
            kwargs["negative_prompt_embeds"] = r.content(9, 40, negative=True)
            kwargs["negative_prompt_attention_mask"] = torch.ones(r.batch, 9)
        return {**kwargs, **r.pixels(64), "guidance_scale": 4.5 if r.cfg else 1.0}

    extra = {"output_type": "latent", "negative_prompt": None, "use_resolution_binning": False}
    return TinyPipeline(quiet(pipe), request, extra=extra)


def lumina2_truncated(seed: int = 0, layers: int = 4) -> TinyPipeline:
    """Guidance only in the first half of the steps: the second call is missing in the others."""
    tiny = lumina2(seed, layers)
    return TinyPipeline(tiny.pipe, tiny.request, True, extra={**tiny.extra, "cfg_trunc_ratio": 0.5})


def z_image(seed: int = 0, layers: int = 4, *, scheduler: Any = None) -> TinyPipeline:
    """Lists of pictures and of prompts, ascending time, batched guidance."""
    pipe = D.ZImagePipeline(
        transformer=WIDE["z_image"](layers, seed).module,
        vae=None,
        scheduler=scheduler or D.FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
    )

    def request(r: Request) -> dict[str, Any]:
        kwargs: dict[str, Any] = {"prompt_embeds": list(r.content(9, 10).unbind(0))}
        if r.cfg:
            kwargs["negative_prompt_embeds"] = list(r.content(9, 10, negative=True).unbind(0))
        return {**kwargs, **r.pixels(16), "guidance_scale": 4.0 if r.cfg else 0.0}

    return TinyPipeline(quiet(pipe), request, extra={"output_type": "latent"})


def z_image_truncated(seed: int = 0, layers: int = 4) -> TinyPipeline:
    """Batched guidance that ends in the middle: batch two, then batch one."""
    tiny = z_image(seed, layers)
    return TinyPipeline(tiny.pipe, tiny.request, extra={**tiny.extra, "cfg_truncation": 0.5})


def hunyuan_image(seed: int = 0, layers: int = 4, *, scheduler: Any = None) -> TinyPipeline:
    """A guider of diffusers decides which calls a step has, and names them by itself; a second text encoder."""
    pipe = D.HunyuanImagePipeline(
        transformer=WIDE["hunyuan_image"](layers, seed).module,
        vae=None,
        scheduler=scheduler or D.FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(guidance_scale=3.5),
    )

    def request(r: Request) -> dict[str, Any]:
        def prompt(prefix: str, negative: bool) -> dict[str, Any]:
            return {
                f"{prefix}prompt_embeds": r.content(9, 24, negative=negative),
                f"{prefix}prompt_embeds_mask": torch.ones(r.batch, 9, dtype=torch.int64),
                f"{prefix}prompt_embeds_2": torch.zeros(r.batch, 5, 20),
                f"{prefix}prompt_embeds_mask_2": torch.zeros(r.batch, 5, dtype=torch.int64),
            }

        pipe.guider._enabled = r.cfg
        return {**prompt("", False), **(prompt("negative_", True) if r.cfg else {}), **r.pixels(64)}

    return TinyPipeline(quiet(pipe), request, True, ("pred_cond", "pred_uncond"), {"output_type": "latent"})


def glm_image(seed: int = 0, layers: int = 4, *, edit: bool = False) -> TinyPipeline:
    """Separate guidance without names; with `edit` a call before the loop fills a key-value cache for others."""
    vae = autoencoder(4, blocks=1)
    vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    pipe = GlmImagePipeline(
        transformer=WIDE["glm_image"](layers, seed).module,
        vae=vae,
        scheduler=D.FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
        processor=None,
        vision_language_encoder=None,
    )

    def request(r: Request) -> dict[str, Any]:
        rows, columns = 2 * r.grid[0], 2 * r.grid[1]
        random = torch.Generator().manual_seed(r.prompt_seed)
        kwargs: dict[str, Any] = {
            "prompt_embeds": r.content(9, 24),
            "prior_token_ids": torch.randint(0, 32, (r.batch, rows * columns), generator=random),
        }
        if r.cfg:
            kwargs["negative_prompt_embeds"] = r.content(9, 24, negative=True)
        if edit:
            grid = torch.tensor([[1, rows, columns]])
            kwargs["image"] = [[one] for one in picture(r, 4).permute(0, 2, 3, 1).numpy()]
            kwargs["prior_token_image_ids"] = [torch.randint(0, 32, (rows * columns,), generator=random)] * r.batch
            kwargs["source_image_grid_thw"] = [grid] * r.batch
        return {**kwargs, **r.pixels(4), "guidance_scale": 1.5 if r.cfg else 1.0}

    return TinyPipeline(quiet(pipe), request, True, extra={"output_type": "latent"})


def glm_image_edit(seed: int = 0, layers: int = 4) -> TinyPipeline:
    return glm_image(seed, layers, edit=True)


PIPELINES_IMAGE: dict[str, Callable[..., TinyPipeline]] = {
    "flux_plain": flux_plain,
    "flux_img2img": flux_img2img,
    "flux_inpaint": flux_inpaint,
    "flux_kontext": flux_kontext,
    "flux_controlnet": flux_controlnet,
    "flux_ip_adapter": flux_ip_adapter,
    "sd3_skipped_layers": sd3_skipped_layers,
    "sana": sana,
    "lumina2": lumina2,
    "lumina2_truncated": lumina2_truncated,
    "z_image": z_image,
    "z_image_truncated": z_image_truncated,
    "hunyuan_image": hunyuan_image,
    "glm_image": glm_image,
    "glm_image_edit": glm_image_edit,
}
