"""The models to compare on, by the name that `--model` takes: a pipeline, the pictures of a round, and who judges them.

Another trained model is one more `Model`: a pipeline of diffusers with a `transformer` and a `scheduler`, what it is
asked to draw in a round, and a judge.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from torch import Tensor, nn

from benchmarks.flux import PRESETS, Preset, new_transformer

FIRST_SEED = 1000
"""Of the noise of the first round; no contestant is set up with it."""
BLOCK_LISTS = ("transformer_blocks", "single_transformer_blocks")


class Model:
    """A model to compare on."""

    name: str
    branches = 1
    """Calls of the transformer per step."""
    steps = 50
    """Of one generation, unless told otherwise."""
    is_judged = False
    """Whether quality means something: `reference` gives a judge."""

    def load(self, device: str) -> Any:
        """The pipeline with its weights on the device."""
        raise NotImplementedError

    def draw(self, pipeline: Any, number: int, count: int, steps: int) -> Tensor:
        """The `count` pictures of a round: equal rounds have equal noise and conditioning, for every pipeline."""
        raise NotImplementedError

    def reference(self, pictures: Tensor, rounds: int, count: int) -> Any:
        """What judges pictures beside these uncached ones of all rounds: has a `quality` of pictures, a dataclass."""
        raise NotImplementedError


class RandomFlux(Model):
    """A transformer of the Flux family with random weights in the pipeline of diffusers: for speed only.

    Text encoders and the decoder are left out: embeddings are random, and the pictures are latents.
    """

    steps = 28

    def __init__(self, name: str, preset: Preset) -> None:
        self.name, self.preset = name, preset

    def load(self, device: str) -> FluxPipeline:
        # the scheduler of FLUX.1-dev
        scheduler = FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_image_seq_len=256, max_image_seq_len=4096
        )
        nothing = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
        return FluxPipeline(transformer=new_transformer(self.preset, device), scheduler=scheduler, **nothing)

    def draw(self, pipeline: Any, number: int, count: int, steps: int) -> Tensor:
        preset, device = self.preset, pipeline.transformer.device
        generator = torch.Generator(device).manual_seed(FIRST_SEED + number)

        def noise(*shape: int) -> Tensor:
            return torch.randn(count, *shape, generator=generator, device=device).to(preset.dtype)

        latents: Tensor = pipeline(
            prompt_embeds=noise(preset.text_tokens, preset.text_dim),
            pooled_prompt_embeds=noise(preset.pooled_dim),
            height=16 * preset.grid,
            width=16 * preset.grid,
            num_inference_steps=steps,
            generator=generator,
            output_type="latent",
            return_dict=False,
        )[0]
        return latents


class Digits(Model):
    """The trained model of `benchmarks.digits`: classes in turn, guidance 2 in two calls."""

    name, branches, is_judged, guidance = "digits", 2, True, 2.0

    def load(self, device: str) -> Any:
        from benchmarks.digits.sample import load_pipeline

        return load_pipeline().to(device)

    def draw(self, pipeline: Any, number: int, count: int, steps: int) -> Tensor:
        generator = torch.Generator().manual_seed(FIRST_SEED + number)
        labels = self._labels(number, count)
        (images,) = pipeline(labels, steps, self.guidance, generator, output_type="pt", return_dict=False)
        return images

    def reference(self, pictures: Tensor, rounds: int, count: int) -> Any:
        from benchmarks.quality import Reference

        return Reference(pictures.cpu(), torch.cat([self._labels(number, count) for number in range(rounds)]))

    def _labels(self, number: int, count: int) -> Tensor:
        return torch.arange(number * count, (number + 1) * count) % 10


class DistilledDigits(Digits):
    """The same distilled to few steps: guidance is in the weights, so there is one call a step."""

    name, branches, steps, guidance = "digits-distilled", 1, 8, 1.0

    def load(self, device: str) -> Any:
        from benchmarks.digits.sample import load_few_step_pipeline

        return load_few_step_pipeline().to(device)


class Scenes(Model):
    """The trained model of `benchmarks.scenes`, 24 blocks: random captions, guidance 3 in two calls."""

    name, branches, steps, is_judged, guidance = "scenes", 2, 28, True, 3.0

    def load(self, device: str) -> Any:
        from benchmarks.scenes.sample import load_pipeline

        return load_pipeline().to(device)

    def draw(self, pipeline: Any, number: int, count: int, steps: int) -> Tensor:
        generator = torch.Generator().manual_seed(FIRST_SEED + number)
        layouts = self._layouts(number, count)
        (images,) = pipeline(layouts, steps, self.guidance, generator, output_type="pt", return_dict=False)
        return images

    def reference(self, pictures: Tensor, rounds: int, count: int) -> Any:
        from benchmarks.scenes.caption import Layouts
        from benchmarks.scenes.quality import SceneReference

        asked = [self._layouts(number, count) for number in range(rounds)]
        things, backgrounds = (torch.cat([getattr(each, part) for each in asked]) for part in ("things", "backgrounds"))
        return SceneReference(pictures.cpu(), Layouts(things, backgrounds))

    def _layouts(self, number: int, count: int) -> Any:
        from benchmarks.scenes.data import random_layouts

        return random_layouts(count, torch.Generator().manual_seed(FIRST_SEED + number))


_ALL: tuple[Model, ...] = (
    Digits(),
    DistilledDigits(),
    Scenes(),
    RandomFlux("flux-tiny", PRESETS["tiny"]),
    RandomFlux("flux-like", PRESETS["small"]),
    RandomFlux("flux1-dev-random", PRESETS["flux-dev"]),
)
MODELS = {model.name: model for model in _ALL}


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """The blocks in the order in which they run."""
    return [block for name in BLOCK_LISTS for block in getattr(transformer, name)]


def twin(pipeline: Any) -> Any:
    """The pipeline once more around the same weights, with modules and a scheduler of its own."""
    parts = {"transformer": sharing(pipeline.transformer), "scheduler": copy.deepcopy(pipeline.scheduler)}
    found = type(pipeline)(**{**pipeline.components, **parts})
    found.set_progress_bar_config(disable=True)
    return found


def sharing(module: nn.Module) -> nn.Module:
    """The module once more: hooks and compiled code are its own, the storage of its tensors is not."""
    # tensor objects of its own: fxcache knows a model by them
    parameters = {id(each): nn.Parameter(each.detach(), each.requires_grad) for each in module.parameters()}
    buffers = {id(each): each.detach() for each in module.buffers()}
    return copy.deepcopy(module, {**parameters, **buffers})
