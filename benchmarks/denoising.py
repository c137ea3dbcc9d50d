"""The loop that the pipelines of the trained models share: Euler steps of flow matching, guided, one call a branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor


class TransformerPipeline(DiffusionPipeline):
    """A transformer and a scheduler, called as the pipelines of diffusers call theirs.

    Conditioning is made once per generation, the latents are a new tensor in every step and the same one for both
    branches, each branch has its `cache_context`.
    """

    model_cpu_offload_seq = "transformer"

    def __init__(self, transformer: torch.nn.Module, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)


def sample_with(
    pipeline: TransformerPipeline,
    asked: Any,
    *,
    steps: int,
    guidance: float,
    seed: int,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    batched_cfg: bool,
    progress: bool,
) -> Tensor:
    """Images on the CPU, of what is asked for; the same seed gives the same initial noise on every device."""
    pipeline.set_progress_bar_config(disable=not progress, desc="sampling", unit="step")
    if device is not None:
        pipeline.to(device)
    generator = torch.Generator().manual_seed(seed)
    (images,) = pipeline(
        asked, steps, guidance, generator, batched_cfg=batched_cfg, dtype=dtype, output_type="pt", return_dict=False
    )
    return images.cpu()


@dataclass(frozen=True)
class Branch:
    """One call of the transformer per step, with the conditioning that lasts for the generation."""

    name: str
    text: Tensor
    pooled: Tensor


def branches(
    conditional: tuple[Tensor, Tensor], unconditional: tuple[Tensor, Tensor], guided: bool, batched: bool
) -> tuple[Branch, ...]:
    """The calls of one step, from text states and pooled vectors: one without guidance or `batched`, else two."""
    if not guided:
        return (Branch("cond", *conditional),)
    if batched:
        text, pooled = (torch.cat(pair) for pair in zip(conditional, unconditional, strict=True))
        return (Branch("cond_uncond", text, pooled),)
    return Branch("cond", *conditional), Branch("uncond", *unconditional)


def initial_noise(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Normal noise, drawn where the generator lives."""
    source = generator.device if generator is not None else torch.device(device)
    return torch.randn(shape, generator=generator, device=source).to(device=device, dtype=dtype)


def denoise(
    pipeline: DiffusionPipeline,
    calls: Sequence[Branch],
    latents: Tensor,
    ids: tuple[Tensor, Tensor],
    steps: int,
    guidance_scale: float,
) -> Tensor:
    """Tokens [N, L, C] from noise, by the pipeline's transformer and scheduler; `ids` are those of text and image."""
    count = len(latents)
    doubled = len(calls[0].pooled) > count
    sigmas = np.linspace(1.0, 1 / steps, steps)
    pipeline.scheduler.set_timesteps(sigmas=sigmas, device=latents.device)
    pipeline.scheduler.set_begin_index(0)
    with pipeline.progress_bar(total=steps) as progress_bar:
        for t in pipeline.scheduler.timesteps:
            model_input = torch.cat((latents, latents)) if doubled else latents
            timestep = t.expand(model_input.shape[0]).to(latents.dtype)
            velocities: list[Tensor] = []
            for branch in calls:
                with pipeline.transformer.cache_context(branch.name):
                    velocity = pipeline.transformer(
                        hidden_states=model_input,
                        timestep=timestep / 1000,
                        pooled_projections=branch.pooled,
                        encoder_hidden_states=branch.text,
                        txt_ids=ids[0],
                        img_ids=ids[1],
                        return_dict=False,
                    )[0]
                velocities.extend(velocity.split(count))
            velocity = velocities[0]
            if len(velocities) > 1:
                velocity = velocities[1] + guidance_scale * (velocity - velocities[1])
            latents = pipeline.scheduler.step(velocity, t, latents, return_dict=False)[0]
            progress_bar.update()
    return latents
