"""The caches of diffusers as contestants: hooks that `transformer.enable_cache` puts on blocks or attentions.

Where a schedule is a mask, the knob that decides is set before every step so that exactly the steps of the mask are
computed; the methods still compare or count as they always do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
)
from diffusers.hooks import TaylorSeerCacheConfig

from benchmarks.comparison.entries import Entry, Stage
from benchmarks.schedules import Schedule

BRANCHES = ("cond", "uncond")
"""Names that pipelines give to the calls of a step, and by which the hooks keep their state."""


class Hooked(Entry):
    """One cache of diffusers; its state is reset before every generation, as the pipelines do after one."""

    hook: str
    """Name of the hook that holds what the method knows."""

    def __init__(self, stage: Stage, way: str) -> None:
        super().__init__(stage, way)
        self._letters: list[list[str]] = []
        self._hooks: list[Any] = []
        self._enabled = False

    def config(self, schedule: Schedule) -> Any:
        """The configuration that diffusers takes."""
        raise NotImplementedError

    def set(self, schedule: Schedule) -> None:
        """Give the hooks the knobs of another schedule."""
        raise NotImplementedError

    def force(self, step: int, computes: bool) -> None:
        """Make the hooks compute, or reuse in, this step."""
        raise NotImplementedError(f"{type(self).__name__} follows no mask")

    def letter(self, branch: str) -> str:
        """What was decided in the last call of a branch."""
        raise NotImplementedError

    def begin(self, schedule: Schedule) -> None:
        super().begin(schedule)
        if not self._enabled:
            self._enabled = True
            self.transformer.enable_cache(self.config(schedule))
            registries = (getattr(module, "_diffusers_hook", None) for module in self.transformer.modules())
            found = [registry.get_hook(self.hook) for registry in registries if registry is not None]
            self._hooks = [hook for hook in found if hook is not None]
            self.compile()
        self.transformer._reset_stateful_cache()
        self._letters = [[] for _ in range(self.stage.model.branches)]
        self.set(schedule)
        if schedule.mask is not None:
            self.force(0, True)

    def after_step(self, step: int) -> None:
        for branch, letters in zip(BRANCHES, self._letters, strict=False):
            letters.append(self.letter(branch))
        mask = self.schedule.mask
        if mask is not None and step + 1 < len(mask):
            self.force(step + 1, mask[step + 1] == "1")

    def decisions(self) -> tuple[str, ...]:
        return tuple(map("".join, self._letters))

    def state(self) -> Iterable[Any]:
        return self._hooks

    def timestep(self) -> float:
        """The time of the step that runs, 1000 to 0."""
        scheduler = self.pipeline.scheduler
        return float(scheduler.timesteps[scheduler.step_index or 0])

    def close(self) -> None:
        if self._enabled:
            self.transformer.disable_cache()


class FirstBlock(Hooked):
    """FirstBlockCache: the residual of the first block against a threshold, no warmup."""

    hook = "fbc_leader_block_hook"

    def config(self, schedule: Schedule) -> Any:
        return FirstBlockCacheConfig(threshold=0.0)

    def set(self, schedule: Schedule) -> None:
        self._hooks[0].threshold = schedule.threshold

    def force(self, step: int, computes: bool) -> None:
        self._hooks[0].threshold = -1.0 if computes else math.inf

    def letter(self, branch: str) -> str:
        return "C" if self._hooks[0].state_manager._state_cache[branch].should_compute else "."


class TaylorSeer(Hooked):
    """TaylorSeer of order 1: attentions are forecast, or with `lite` the whole stack of blocks."""

    hook = "taylorseer_cache"

    def __init__(self, stage: Stage, way: str, lite: bool) -> None:
        super().__init__(stage, way)
        self._lite = lite

    def config(self, schedule: Schedule) -> Any:
        dtype = self.pipeline.transformer.dtype
        return TaylorSeerCacheConfig(max_order=1, taylor_factors_dtype=dtype, use_lite_mode=self._lite)

    def set(self, schedule: Schedule) -> None:
        for hook in self._hooks:
            if schedule.mask is None:
                hook.cache_interval = int(schedule.threshold or 1)
                hook.disable_cache_before_step = TaylorSeerCacheConfig.disable_cache_before_step
            else:
                hook.cache_interval = 1_000_000

    def force(self, step: int, computes: bool) -> None:
        for hook in self._hooks:
            # a step is computed before this one, and every `cache_interval` steps from the one after it on
            hook.disable_cache_before_step = step + 1 if computes else step

    def letter(self, branch: str) -> str:
        state = self._hooks[0].state_manager._state_cache[branch]
        return "C" if state.last_update_step == state.current_step else "."


class MagCache(Hooked):
    """MagCache with the ratios that it measures of the model itself, on noise that no picture comes from."""

    hook = "mag_cache_leader_block_hook"

    def config(self, schedule: Schedule) -> Any:
        ratios = self._ratios(schedule.steps)
        return MagCacheConfig(threshold=0.0, num_inference_steps=schedule.steps, mag_ratios=ratios)

    def set(self, schedule: Schedule) -> None:
        self._hooks[0].config.threshold = schedule.threshold

    def letter(self, branch: str) -> str:
        return "C" if self._hooks[0].state_manager._state_cache[branch].should_compute else "."

    def _ratios(self, steps: int) -> list[float]:
        # one step more than there are, or they were printed and dropped
        self.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=steps + 1))
        registries = (getattr(module, "_diffusers_hook", None) for module in self.transformer.modules())
        hooks = [registry.get_hook(self.hook) for registry in registries if registry is not None]
        (leader,) = (hook for hook in hooks if hook is not None)
        found: list[float] = []

        def note(_: int) -> None:
            found.append(leader.state_manager._state_cache[BRANCHES[0]].calibration_ratios[-1])

        others, self.watchers = self.watchers, [note]
        try:
            self.stage.model.draw(self.pipeline, -1, 1, steps)
        finally:
            self.watchers = others
            self.transformer.disable_cache()
        return found


class Skipping(Hooked):
    """Attentions are computed in every n-th call, between two times."""

    kind: type
    """Of the configuration."""

    def config(self, schedule: Schedule) -> Any:
        return self.kind(
            spatial_attention_block_skip_range=int(schedule.threshold or 2), current_timestep_callback=self.timestep
        )

    def set(self, schedule: Schedule) -> None:
        for hook in self._hooks:
            hook.block_skip_range = int(schedule.threshold or 2)

    def letter(self, branch: str) -> str:
        # the state is not kept per branch, and every attention counts for itself
        return "m"


class Pyramid(Skipping):
    """Pyramid Attention Broadcast."""

    hook, kind = "pyramid_attention_broadcast", PyramidAttentionBroadcastConfig


class Faster(Skipping):
    """FasterCache, for guidance in one batch as it asks for: also the unconditional half of a batch."""

    hook, kind = "faster_cache_block", FasterCacheConfig


class Sea(Hooked):
    """SeaCache, with the latents that the transformer is given as pictures.

    It asks for step, sigma and the number of steps beside the name of a branch, which most pipelines do not give.
    """

    hook = "sea_cache_leader_block"

    def __init__(self, stage: Stage, way: str) -> None:
        super().__init__(stage, way)
        named = self.transformer.cache_context

        def informed(name: str) -> Any:
            scheduler = self.pipeline.scheduler
            step = scheduler.step_index or 0
            sigma = float(scheduler.sigmas[step])
            return named(name, step_index=step, sigma=sigma, num_inference_steps=self.schedule.steps)

        self.transformer.cache_context = informed

    def config(self, schedule: Schedule) -> Any:
        return SeaCacheConfig(raw_vision_callback=_grids_of_tokens)

    def set(self, schedule: Schedule) -> None:
        self._hooks[0].config.threshold = schedule.threshold

    def letter(self, branch: str) -> str:
        return "." if self._hooks[0].state_manager._state_cache[branch].consecutive_cached else "C"


def _grids_of_tokens(_: torch.nn.Module, __: tuple[Any, ...], given: dict[str, Any]) -> list[torch.Tensor]:
    """Tokens [N, rows * columns, channels] as N pictures [channels, 1, rows, columns]."""
    tokens = given["hidden_states"]
    side = math.isqrt(tokens.shape[1])
    return list(tokens.transpose(1, 2).unflatten(2, (1, side, side)).unbind())
