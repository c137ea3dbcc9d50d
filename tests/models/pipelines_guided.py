"""Whole tiny pipelines, continued: perturbed attention, guiders that hook into layers, modular pipelines, music."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers as D
import torch
from diffusers.guiders import ClassifierFreeGuidance, PerturbedAttentionGuidance, SkipLayerGuidance
from diffusers.hooks import LayerSkipConfig
from diffusers.modular_pipelines.qwenimage.modular_blocks_qwenimage import QwenImageCoreDenoiseStep
from torch import Tensor, nn

from tests.models.pipelines import pixart, qwen
from tests.models.pipelines_image import hunyuan_image, sana
from tests.models.tiny import seeded
from tests.models.tiny_pipeline import Request, TinyPipeline, quiet


def _perturbed(tiny: TinyPipeline, cls: Any, *layers: str) -> TinyPipeline:
    """The pipeline as one with perturbed attention in these layers."""
    wanted = inspect.signature(cls.__init__).parameters
    given = {name: part for name, part in tiny.pipe.components.items() if name in wanted}
    return TinyPipeline(quiet(cls(**given, pag_applied_layers=list(layers))), tiny.request, extra=tiny.extra)


def pixart_pag(seed: int = 0, layers: int = 6, **more: Any) -> TinyPipeline:
    """Perturbed attention in two blocks, whose graph is then another; a batch of three in one call."""
    return _perturbed(pixart(seed, layers, **more), D.PixArtSigmaPAGPipeline, "blocks.0", "blocks.2")


def sana_pag(seed: int = 0, layers: int = 6, **more: Any) -> TinyPipeline:
    """Perturbed linear attention in the last blocks."""
    return _perturbed(sana(seed, layers, **more), D.SanaPAGPipeline, f"blocks.{layers - 1}")


def qwen_modular(seed: int = 0, layers: int = 6, *, scheduler: Any = None) -> TinyPipeline:
    """A pipeline made of blocks, whose guider calls the transformer without a name for the branch."""
    tiny = qwen(seed, layers, scheduler=scheduler)
    pipe = QwenImageCoreDenoiseStep().init_pipeline()
    parts = {name: tiny.pipe.components[name] for name in ("transformer", "scheduler")}
    pipe.update_components(**parts, guider=ClassifierFreeGuidance(guidance_scale=3.5))

    def request(r: Request) -> dict[str, Any]:
        pipe.guider._enabled = r.cfg
        given = {name: value for name, value in tiny.request(r).items() if name != "true_cfg_scale"}
        return {**given, **r.pixels(16)}

    return TinyPipeline(quiet(pipe), request, True, extra={"output": "latents"})


def _guided(tiny: TinyPipeline, guider: Any) -> TinyPipeline:
    """Another guider, whose third call of a step has a name where the pipeline names its calls."""
    if hasattr(tiny.pipe, "update_components"):
        tiny.pipe.update_components(guider=guider)
    else:
        tiny.pipe.guider = guider
    names = (*tiny.context_names, "pred_cond_skip") if tiny.context_names else ()
    return TinyPipeline(tiny.pipe, tiny.request, True, names, tiny.extra)


def _skip_layers(**what: Any) -> Any:
    config = LayerSkipConfig(indices=[1], fqn="transformer_blocks", **what)
    return SkipLayerGuidance(3.5, skip_layer_guidance_stop=1.0, skip_layer_config=config)


def hunyuan_image_skipped_layers(seed: int = 0, layers: int = 4) -> TinyPipeline:
    """From the second step on a third call, for which the guider takes a block out of the model."""
    return _guided(hunyuan_image(seed, layers), _skip_layers())


def qwen_modular_skipped_layers(seed: int = 0, layers: int = 4) -> TinyPipeline:
    """A third call with the prompt of the first one and without a name, less the feed-forward layer of a block."""
    return _guided(qwen_modular(seed, layers), _skip_layers(skip_attention=False))


def hunyuan_image_perturbed(seed: int = 0, layers: int = 4) -> TinyPipeline:
    """A third call under a function mode that takes the attention out of a block."""
    guider = PerturbedAttentionGuidance(3.5, perturbed_guidance_stop=1.0, perturbed_guidance_layers=[1])
    return _guided(hunyuan_image(seed, layers), guider)


class _Conditions(nn.Module):
    """In place of the encoder of text, lyrics and timbre: hands the text states on."""

    def __init__(self, acoustic: int, width: int) -> None:
        super().__init__()
        self.silence_latent = nn.Parameter(torch.randn(1, 800, acoustic))
        self.null_condition_emb = nn.Parameter(torch.randn(1, 1, width))
        self.device, self.dtype = self.silence_latent.device, self.silence_latent.dtype

    def forward(self, text_hidden_states: Tensor, text_attention_mask: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        return text_hidden_states, text_attention_mask


class AceStepPipeline(D.AceStepPipeline):
    """Its prompts are numbers of random text states."""

    def encode_prompt(self, prompt: list[str], **_: Any) -> tuple[Tensor, ...]:
        width = self.transformer.config.hidden_size
        states = [torch.randn(9, width, generator=torch.Generator().manual_seed(int(number))) for number in prompt]
        made, mask = torch.stack(states), torch.ones(len(prompt), 9)
        return made, mask, made, mask


def ace_step(seed: int = 0, layers: int = 6) -> TinyPipeline:
    """The text states of both branches are joined anew in every step."""
    transformer = seeded(
        lambda: D.AceStepTransformer1DModel(
            hidden_size=24,
            intermediate_size=56,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=12,
            in_channels=12,
            audio_acoustic_hidden_dim=4,
            sliding_window=6,
        ),
        seed,
    )
    pipe = AceStepPipeline(
        transformer=transformer,
        condition_encoder=seeded(lambda: _Conditions(4, 24), 100),
        scheduler=D.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )

    def request(r: Request) -> dict[str, Any]:
        prompt = [str(100 * r.prompt_seed + row) for row in range(r.batch)]
        duration = r.grid[0] * r.grid[1] / pipe.latents_per_second
        return {"prompt": prompt, "audio_duration": duration, "guidance_scale": 3.0 if r.cfg else 1.0}

    return TinyPipeline(quiet(pipe), request, extra={"output_type": "latent"})


PIPELINES_GUIDED: dict[str, Callable[..., TinyPipeline]] = {
    "pixart_pag": pixart_pag,
    "sana_pag": sana_pag,
    "qwen_modular": qwen_modular,
    "ace_step": ace_step,
}
"""More builders of whole pipelines."""
