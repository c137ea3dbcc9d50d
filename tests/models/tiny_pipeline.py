"""The common form of a tiny pipeline: a pipeline of diffusers, and requests that it understands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers as D
import torch
from torch import Tensor, nn

from tests.models.tiny import GRIDS, seeded


@dataclass(frozen=True)
class Request:
    """What one generation asks for, in units that every pipeline understands."""

    prompt_seed: int
    grid: tuple[int, int]
    steps: int
    cfg: bool
    batch: int

    def content(self, *shape: int, negative: bool = False) -> Tensor:
        """Prompt embedding (or its negative) of one shape, the same for the same seed."""
        generator = torch.Generator().manual_seed(2 * self.prompt_seed + negative)
        return torch.randn((self.batch, *shape), generator=generator)

    def pixels(self, unit: int) -> dict[str, int]:
        """Height and width of `unit` pixels per patch."""
        return {"height": self.grid[0] * unit, "width": self.grid[1] * unit}


@dataclass
class TinyPipeline:
    """A pipeline and its requests. `separate` tells whether guidance costs a second call per step."""

    pipe: Any
    request: Callable[[Request], dict[str, Any]]
    separate: bool = False
    context_names: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def transformer(self) -> nn.Module:
        """The denoiser of the pipeline."""
        return self.pipe.transformer

    def calls(self, steps: int = 3, cfg: bool = False) -> int:
        """Calls of the denoiser in one generation with a first order scheduler."""
        return steps * (2 if self.separate and cfg else 1)

    def inputs(
        self,
        prompt_seed: int = 0,
        size: int | tuple[int, int] = 0,
        steps: int = 3,
        cfg: bool = False,
        *,
        batch: int = 1,
        latent_seed: int = 0,
    ) -> dict[str, Any]:
        """Keyword arguments of a call: new prompt tensors and a fresh generator every time."""
        grid = GRIDS[size] if isinstance(size, int) else size
        kwargs = self.request(Request(prompt_seed, grid, steps, cfg, batch))
        common = {"num_inference_steps": steps, "return_dict": False}
        return {**common, **self.extra, **kwargs, "generator": torch.Generator().manual_seed(latent_seed)}

    def run(self, **overrides: Any) -> Tensor:
        """Generate; the arguments of `inputs` are understood, any other goes to the pipeline."""
        known = ("prompt_seed", "size", "steps", "cfg", "batch", "latent_seed")
        kwargs = self.inputs(**{name: overrides.pop(name) for name in known if name in overrides})
        result: Tensor = self.pipe(**{**kwargs, **overrides})[0]
        return result


def quiet(pipe: Any) -> Any:
    """Switch the progress bar off (the pipeline still asks for one)."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def autoencoder(channels: int, blocks: int = 1, **more: Any) -> Any:
    """A picture autoencoder that halves the size `blocks - 1` times."""
    config: dict[str, Any] = {"shift_factor": 0.0609, "scaling_factor": 1.5035, **more}
    return seeded(
        lambda: D.AutoencoderKL(
            sample_size=32,
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=(4,) * blocks,
            layers_per_block=1,
            latent_channels=channels,
            norm_num_groups=1,
            use_quant_conv=False,
            use_post_quant_conv=False,
            **config,
        ),
        seed=100,
    )


def wan_autoencoder() -> Any:
    return seeded(
        lambda: D.AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1] * 4, num_res_blocks=1, temperal_downsample=[False, True, True]
        ),
        seed=100,
    )
