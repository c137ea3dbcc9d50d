"""Generate scenes: a diffusers pipeline over the trained transformer, and `sample`, one call around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from benchmarks.denoising import Branch, TransformerPipeline, branches, denoise, initial_noise, sample_with
from benchmarks.scenes.caption import Layouts, Scene
from benchmarks.scenes.data import random_layouts
from benchmarks.scenes.model import CHANNELS, GRID, WEIGHTS, condition, load_transformer, position_ids, unpack

Prompts = Sequence[Scene | str] | Layouts
"""Captions, scenes or their numbers."""


def _branches(layouts: Layouts, dtype: torch.dtype, guided: bool, batched: bool) -> tuple[Branch, ...]:
    dropped = torch.ones_like(layouts.backgrounds, dtype=torch.bool)
    unconditional = condition(layouts, dropped, dtype)
    return branches(condition(layouts, dtype=dtype), unconditional, guided, batched)


class ScenesPipeline(TransformerPipeline):
    """Captioned scenes by Euler steps of flow matching, with classifier-free guidance."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompts | str,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.0,
        generator: torch.Generator | None = None,
        batched_cfg: bool = False,
        dtype: torch.dtype | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate one 32x32 picture per caption, all of them in one batch.

        Args:
            prompt: one caption, or N captions or scenes; see `Scene.of`.
            num_inference_steps: Euler steps.
            guidance_scale: 1 calls only the conditional branch; above it the unconditional one is called too.
            generator: source of the initial noise; the noise is drawn where the generator lives.
            batched_cfg: call both branches as one batch of 2N instead of one after the other.
            dtype: of latents and conditioning; the transformer's own by default.
            output_type: "pil" for a list of images, "pt" for a float32 tensor [N, 3, 32, 32] in [0, 1].
            return_dict: return an `ImagePipelineOutput` instead of a tuple.
        """
        if output_type not in ("pil", "pt"):
            raise ValueError(f'output_type={output_type!r}: expected "pil" or "pt"')
        device = self._execution_device
        dtype = dtype or self.transformer.dtype
        layouts = _layouts(prompt).to(device)
        calls = _branches(layouts, dtype, guidance_scale > 1, batched_cfg)
        noise = initial_noise((len(layouts), GRID * GRID, CHANNELS), generator, device, dtype)
        ids = position_ids(device, dtype)
        images: Any = unpack(denoise(self, calls, noise, ids, num_inference_steps, guidance_scale).float())
        if output_type == "pil":
            pixels = images.permute(0, 2, 3, 1).mul(255).round().byte().cpu().numpy()
            images = [Image.fromarray(each) for each in pixels]
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def _layouts(prompt: Prompts | str) -> Layouts:
    if isinstance(prompt, Layouts):
        return prompt
    return Layouts.of([prompt] if isinstance(prompt, str) else prompt)


def load_pipeline(folder: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> ScenesPipeline:
    """The pipeline with the trained weights of `folder`, on the CPU; nothing is downloaded."""
    return ScenesPipeline(load_transformer(folder, dtype), FlowMatchEulerDiscreteScheduler())


def calibration_run() -> tuple[ScenesPipeline, Callable[[], Any]]:
    """The pipeline, and a generation of eight scenes, for `python -m fxcache calibrate`."""
    pipeline = load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    layouts = random_layouts(8, torch.Generator().manual_seed(0))
    return pipeline, lambda: pipeline(layouts, generator=torch.Generator().manual_seed(0))


def sample(
    transformer: torch.nn.Module,
    prompt: Prompts | str,
    *,
    steps: int = 50,
    guidance: float = 3.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    batched_cfg: bool = False,
    progress: bool = True,
) -> Tensor:
    """Images float32 [N, 3, 32, 32] in [0, 1] on the CPU, one per caption.

    The same seed gives the same initial noise on every device. `device` moves the transformer; `dtype` is that of
    latents and conditioning, and defaults to the transformer's.
    """
    return sample_with(
        ScenesPipeline(transformer, FlowMatchEulerDiscreteScheduler()),
        prompt,
        steps=steps,
        guidance=guidance,
        seed=seed,
        device=device,
        dtype=dtype,
        batched_cfg=batched_cfg,
        progress=progress,
    )
