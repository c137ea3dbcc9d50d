"""Generate digits: a diffusers pipeline over the trained transformer, and `sample`, one call around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from benchmarks.denoising import Branch, TransformerPipeline, branches, denoise, initial_noise, sample_with
from benchmarks.digits.model import (
    GRID,
    NULL_CLASS,
    PATCH,
    WEIGHTS,
    condition,
    load_few_steps,
    load_transformer,
    position_ids,
    unpack,
)


def _branches(classes: Tensor, dtype: torch.dtype, guided: bool, batched: bool) -> tuple[Branch, ...]:
    unconditional = condition(torch.full_like(classes, NULL_CLASS), dtype)
    return branches(condition(classes, dtype), unconditional, guided, batched)


class DigitsPipeline(TransformerPipeline):
    """Class-conditional digits by Euler steps of flow matching, with classifier-free guidance."""

    @torch.no_grad()
    def __call__(
        self,
        labels: Sequence[int] | Tensor,
        num_inference_steps: int = 50,
        guidance_scale: float = 2.0,
        generator: torch.Generator | None = None,
        batched_cfg: bool = False,
        dtype: torch.dtype | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate one 16x16 picture per label, all of them in one batch.

        Args:
            labels: N classes of 0..9.
            num_inference_steps: Euler steps.
            guidance_scale: 1 calls only the conditional branch; above it the unconditional one is called too.
            generator: source of the initial noise; the noise is drawn where the generator lives.
            batched_cfg: call both branches as one batch of 2N instead of one after the other.
            dtype: of latents and conditioning; the transformer's own by default.
            output_type: "pil" for a list of images, "pt" for a float32 tensor [N, 16, 16] in [0, 1], "latent" for the
                tokens [N, 64, 4].
            return_dict: return an `ImagePipelineOutput` instead of a tuple.
        """
        if output_type not in ("pil", "pt", "latent"):
            raise ValueError(f'output_type={output_type!r}: expected "pil", "pt" or "latent"')
        device = self._execution_device
        dtype = dtype or self.transformer.dtype
        classes = torch.as_tensor(labels, device=device).long()
        calls = _branches(classes, dtype, guidance_scale > 1, batched_cfg)
        noise = initial_noise((len(classes), GRID * GRID, PATCH * PATCH), generator, device, dtype)
        ids = position_ids(device, dtype)
        latents = denoise(self, calls, noise, ids, num_inference_steps, guidance_scale)

        images: Any = latents if output_type == "latent" else unpack(latents.float())
        if output_type == "pil":
            images = [Image.fromarray(pixels) for pixels in images.mul(255).round().byte().cpu().numpy()]
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def load_pipeline(folder: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> DigitsPipeline:
    """The pipeline with the trained weights of `folder`, on the CPU; nothing is downloaded."""
    return DigitsPipeline(load_transformer(folder, dtype), FlowMatchEulerDiscreteScheduler())


def load_few_step_pipeline() -> DigitsPipeline:
    """The pipeline distilled to few steps, on the CPU: call it with `num_inference_steps=8, guidance_scale=1`."""
    return DigitsPipeline(load_few_steps(), FlowMatchEulerDiscreteScheduler())


def calibration_run() -> tuple[DigitsPipeline, Callable[[], Any]]:
    """The pipeline, and a generation of every class, for `python -m fxcache calibrate`."""
    pipeline = load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, lambda: pipeline(range(10), generator=torch.Generator().manual_seed(0))


def sample(
    transformer: torch.nn.Module,
    labels: Sequence[int] | Tensor,
    *,
    steps: int = 50,
    guidance: float = 2.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    batched_cfg: bool = False,
    progress: bool = True,
) -> Tensor:
    """Images float32 [N, 16, 16] in [0, 1] on the CPU, one per label.

    The same seed gives the same initial noise on every device. `device` moves the transformer; `dtype` is that of
    latents and conditioning, and defaults to the transformer's.
    """
    return sample_with(
        DigitsPipeline(transformer, FlowMatchEulerDiscreteScheduler()),
        labels,
        steps=steps,
        guidance=guidance,
        seed=seed,
        device=device,
        dtype=dtype,
        batched_cfg=batched_cfg,
        progress=progress,
    )
