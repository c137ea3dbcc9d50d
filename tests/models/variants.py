"""Further pipelines for the situations that the plain ones do not show."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers as D
import torch
from diffusers.modular_pipelines import ModularPipeline

from tests.models.pipelines import flux, wan
from tests.models.tiny import seeded
from tests.models.tiny_pipeline import Request, TinyPipeline, autoencoder, quiet


def wan_two(seed: int = 0, layers: int = 6, **more: Any) -> TinyPipeline:
    """Two models in one generation: `transformer` for the early steps, `transformer_2` for the late ones."""
    return wan(seed, layers, boundary_ratio=0.875, **more)


def lumina2(seed: int = 0, layers: int = 4, *, scheduler: Any = None) -> TinyPipeline:
    """Separate guidance without a context, ascending time, graph breaks; `cfg_trunc_ratio` drops the second call."""
    transformer = seeded(
        lambda: D.Lumina2Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            hidden_size=24,
            num_layers=layers,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=16,
            norm_eps=1e-5,
            scaling_factor=1.0,
            axes_dim_rope=[4, 2, 2],
            cap_feat_dim=10,
        ),
        seed,
    )
    pipe = D.Lumina2Pipeline(
        transformer=transformer,
        vae=autoencoder(4, blocks=4),
        scheduler=scheduler or D.FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
    )

    def request(r: Request) -> dict[str, Any]:
        mask = torch.ones(r.batch, 9, dtype=torch.int64)
        kwargs: dict[str, Any] = {"prompt_embeds": r.content(9, 10), "prompt_attention_mask": mask}
        if r.cfg:
            kwargs["negative_prompt_embeds"] = r.content(9, 10, negative=True)
            kwargs["negative_prompt_attention_mask"] = mask.clone()
        return {**kwargs, **r.pixels(16), "guidance_scale": 5.0 if r.cfg else 1.0}

    return TinyPipeline(quiet(pipe), request, True, extra={"output_type": "latent"})


def flux_img2img(seed: int = 0, layers: int = 4, **more: Any) -> TinyPipeline:
    """Starts in the middle of the schedule: `strength=0.6` of 5 steps makes 3 calls; gives no context."""
    plain = flux(seed, layers, **more)
    parts = {**plain.pipe.components, "scheduler": copy.deepcopy(plain.pipe.scheduler)}
    pipe = D.FluxImg2ImgPipeline(**parts)

    def request(r: Request) -> dict[str, Any]:
        size = r.pixels(2)
        picture = torch.rand(r.batch, 3, size["height"], size["width"], generator=torch.Generator().manual_seed(3))
        return {**plain.request(r), "image": picture, "strength": 0.6}

    return TinyPipeline(quiet(pipe), request, True, extra={"output_type": "latent"})


VARIANTS: dict[str, Callable[..., TinyPipeline]] = {
    "wan_two": wan_two,
    "lumina2": lumina2,
    "flux_img2img": flux_img2img,
}
"""Builders of the further pipelines."""


def twin(tiny: TinyPipeline) -> TinyPipeline:
    """A second pipeline on the same transformers, for interleaved requests; all else has a state of its own."""
    given = tiny.pipe.components
    parts = {name: part if name.startswith("transformer") else copy.deepcopy(part) for name, part in given.items()}
    config = {name: value for name, value in tiny.pipe.config.items() if name in ("boundary_ratio", "expand_timesteps")}
    if isinstance(tiny.pipe, ModularPipeline):
        other = type(tiny.pipe.blocks)().init_pipeline()
        other.update_components(**parts)
    else:
        other = type(tiny.pipe)(**{**parts, **config})
    return TinyPipeline(quiet(other), tiny.request, tiny.separate, tiny.context_names, tiny.extra)
