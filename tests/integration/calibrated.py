"""Calibrated DBCache written down a second time: eager, block by block, on a list of what was computed.

It is told whose call each one is, keeps everything it has ever computed, and predicts with `tests.calibrators.explicit`
on whole vectors. It knows nothing of graphs, slots, scalar products or modes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fxcache.options import Options
from tests.calibrators import explicit
from tests.models.tiny_trunk import Streams, TinyTrunk


@dataclass(frozen=True)
class Kept:
    """One computed step."""

    time: float
    indicator: Tensor
    values: Streams
    """Per stream what is stored of it."""


@dataclass
class Memory:
    """One branch of one generation."""

    step: int = 0
    kept: list[Kept] = field(default_factory=list)
    """Newest first."""
    in_a_row: int = 0
    decisions: str = ""
    differences: list[float | None] = field(default_factory=list)


class EagerCalibrated:
    """The reference for one trunk whose image tokens are its first stream."""

    margin = 1e-3

    def __init__(self, model: TinyTrunk, options: Options) -> None:
        self.model, self.options = model, options
        self.memories: dict[Hashable, Memory] = {}

    def call(self, key: Hashable, x: Tensor, t: Tensor, c: Tensor, seen: str | None = None) -> Tensor:
        """Output of the next call of a branch; ``seen`` is what others decided, taken where the difference is close."""
        model, memory = self.model, self.memories.setdefault(key, Memory())
        first, last = self.options.resolve_blocks(len(model.blocks))
        changing, fixed = model.prefix(x, t, c)
        start = changing
        for index in range(first):
            changing = model.block(index, changing, fixed)
        indicator = self.indicator(start, changing, fixed)
        time = float(t.max()) if self.options.calibrator_time == "timestep" else float(memory.step)
        reused, difference = self.decide(memory, indicator, time, seen)
        entered = changing
        if reused:
            changing = self.predicted(memory, indicator, time, entered)
        else:
            for index in range(first, len(model.blocks) - last):
                changing = model.block(index, changing, fixed)
            memory.kept.insert(0, Kept(time, indicator, self.stored(entered, changing)))
        for index in range(len(model.blocks) - last, len(model.blocks)):
            changing = model.block(index, changing, fixed)
        memory.step += 1
        memory.in_a_row = memory.in_a_row + 1 if reused else 0
        memory.decisions += "." if reused else "C"
        memory.differences.append(difference)
        return model.suffix(changing, fixed, x)

    def indicator(self, start: Streams, after: Streams, fixed: Streams) -> Tensor:
        """What the first blocks add to the tokens; without first blocks what the first one reads of them."""
        if self.options.resolve_blocks(len(self.model.blocks))[0]:
            return (after[0].float() - start[0].float()).double()
        block = self.model.blocks[0]
        norm = block.norm if self.model.two_streams else block.first
        scale = block.modulation(fixed[-1]).unsqueeze(1).chunk(2, dim=-1)[0]
        return (norm(start[0]) * (1 + scale)).double()

    def predicts(self, stream: int) -> bool:
        """Whether the calibrator is on for this stream."""
        return self.options.enable_calibrator if stream == 0 else self.options.enable_encoder_calibrator

    def stored(self, entered: Streams, left: Streams) -> Streams:
        values = []
        for stream, (before, after) in enumerate(zip(entered, left, strict=True)):
            whole = self.predicts(stream) and self.options.calibrator_cache_type == "hidden_states"
            value = after if whole else (after.float() - before.float()).to(after.dtype)
            dtype = self.options.calibrator_dtype if self.predicts(stream) else None
            if dtype is not None:
                value = (after.float() - (0 if whole else before.float())).to(getattr(torch, dtype))
            values.append(value)
        return tuple(values)

    def window(self, memory: Memory) -> list[Kept]:
        """The steps that a forecast may use."""
        kept = memory.kept[: self.options.history]
        good = [all(bool(v.isfinite().all()) for v in (*each.values, each.indicator)) for each in kept]
        return kept[: good.index(False)] if False in good else kept

    def weights(self, kept: list[Kept], indicator: Tensor, time: float, stream: int) -> explicit.Vector:
        options, times = self.options, [each.time for each in kept]
        limit = math.inf if options.calibrator_max_gain is None else options.calibrator_max_gain
        observation = indicator.flatten().numpy()
        observed = np.stack([each.indicator.flatten().numpy() for each in kept])
        if options.calibrator == "foca":
            return explicit.foca(times, time, limit)
        if options.calibrator == "dmd":
            values = np.stack([each.values[stream].double().flatten().numpy() for each in kept])
            return explicit.dmd(times, time, values, options.dmd_rank, options.dmd_ridge, limit)
        if options.calibrator == "regression":
            smooth = explicit.taylorseer(times, time, 2, limit)
            return explicit.regression(observation, observed, options.regression_ridge, smooth)
        if options.forecasts_indicator and options.observes:
            return explicit.best_taylorseer(times, time, options.taylorseer_order, observation, observed, limit)
        return explicit.taylorseer(times, time, options.taylorseer_order, limit)

    def predicted(self, memory: Memory, indicator: Tensor, time: float, entered: Streams) -> Streams:
        kept, streams = self.window(memory), []
        for stream, before in enumerate(entered):
            weights = np.eye(len(kept))[0]
            if self.predicts(stream):
                weights = self.weights(kept, indicator, time, stream)
            value = sum(float(w) * each.values[stream].double() for w, each in zip(weights, kept, strict=True))
            if self.options.calibrator_cache_type == "residual" or not self.predicts(stream):
                value = value + before.double()
            streams.append(torch.as_tensor(value).to(before.dtype))
        return tuple(streams)

    def decide(self, memory: Memory, indicator: Tensor, time: float, seen: str | None) -> tuple[bool, float | None]:
        """Return whether to reuse, and the difference where one is measured."""
        options, step = self.options, memory.step
        mask = options.steps_computation_mask
        if mask is not None and (step >= len(mask) or mask[step]):
            return False, None
        if options.has_static_mask:
            return bool(memory.kept), None
        if step < options.max_warmup_steps or not memory.kept:
            return False, None
        if 0 <= options.max_continuous_cached_steps <= memory.in_a_row:
            return False, None
        kept = self.window(memory)
        if not kept or not bool(indicator.isfinite().all()):
            return False, None
        if options.forecasts_indicator:
            weights = self.weights(kept, indicator, time, 0)
            forecast = sum(float(w) * each.indicator for w, each in zip(weights, kept, strict=True))
            difference = float((forecast - indicator).norm() / indicator.norm())
        else:
            newest = kept[0].indicator
            difference = float((indicator - newest).abs().mean() / newest.abs().mean())
        threshold = math.inf if options.residual_diff_threshold >= 1 else options.residual_diff_threshold
        if seen is not None and abs(difference - threshold) <= self.margin * threshold:
            return seen == ".", difference
        return difference < threshold, difference
