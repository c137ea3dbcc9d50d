"""DBCache with contexts, written down a second time: eager, readable, and told for every call whose it is.

It knows nothing of graphs, of identities or of times. Whoever calls it says which generation and branch the call
belongs to; what it then does is what fxcache has to do, call by call, when it finds out by itself.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tests.models.tiny_trunk import Streams, TinyTrunk


@dataclass(frozen=True)
class Label:
    """Whose call it is: the ground truth."""

    generation: Hashable
    branch: Hashable
    step: int | None = None
    """The step, if the caller counts the steps; otherwise the calls are counted."""


@dataclass
class Memory:
    """All that one branch of one generation remembers, at one size and dtype."""

    step: int = 0
    reference: Tensor | None = None
    residuals: Streams = ()
    reused: int = 0
    reused_in_a_row: int = 0
    accumulated: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What a call did: ``reused`` or not, and the difference where one was measured."""

    reused: bool
    difference: float | None = None
    close: bool = False
    """The difference is so near to the threshold that rounding may turn the decision."""


@dataclass
class EagerDBCache:
    """The reference: one cache over one open trunk."""

    model: TinyTrunk
    options: Any
    margin: float = 1e-3
    """Relative distance to the threshold below which both decisions count as right."""
    memories: dict[Hashable, Memory] = field(default_factory=dict)

    def call(self, label: Label, x: Tensor, t: Tensor, c: Tensor, seen: bool | None = None) -> tuple[Tensor, Decision]:
        """Return the output and the decision of one call; where the difference is `close`, do as the other has done."""
        key = (label.generation, label.branch, tuple(x.shape), x.dtype, tuple(c.shape), c.dtype, tuple(t.shape))
        memory = self.memories.setdefault(key, Memory())
        if label.step is not None:
            memory.step = label.step
        first, last = self.options.resolve_blocks(len(self.model.blocks))
        changing, fixed = self.model.prefix(x, t, c)
        start = changing
        for index in range(first):
            changing = self.model.block(index, changing, fixed)
        indicator = self.indicator(start[0], changing[0])
        decision = self.decide(memory, indicator, seen)
        entered = changing
        if decision.reused:
            changing = tuple(stream + residual for stream, residual in zip(entered, memory.residuals, strict=True))
        else:
            for index in range(first, len(self.model.blocks) - last):
                changing = self.model.block(index, changing, fixed)
            memory.reference = indicator
            memory.residuals = tuple(after - before for after, before in zip(changing, entered, strict=True))
        for index in range(len(self.model.blocks) - last, len(self.model.blocks)):
            changing = self.model.block(index, changing, fixed)
        self.count(memory, decision)
        return self.model.suffix(changing, fixed, x), decision

    def uncached(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """Return the output of a call that must leave no trace."""
        return self.model(x, t, c)

    def forget(self, generation: Hashable = None) -> None:
        """Forget one generation, or everything."""
        gone = [key for key in self.memories if generation is None or key[0] == generation]
        for key in gone:
            del self.memories[key]

    def indicator(self, start: Tensor, end: Tensor) -> Tensor:
        every = self.options.downsample_factor
        value = (
            end.double() if self.options.l1_hidden_states_diff_threshold is not None else end.double() - start.double()
        )
        return value[..., ::every]

    def decide(self, memory: Memory, indicator: Tensor, seen: bool | None) -> Decision:
        options = self.options
        if memory.step < options.max_warmup_steps and memory.step % options.warmup_interval == 0:
            return Decision(False)
        if options.max_cached_steps != -1 and memory.reused >= options.max_cached_steps:
            return Decision(False)
        if options.max_continuous_cached_steps != -1 and memory.reused_in_a_row >= options.max_continuous_cached_steps:
            return Decision(False)
        limit = options.max_accumulated_residual_diff_threshold
        if limit is not None and memory.accumulated >= limit:
            return Decision(False)
        if memory.reference is None:
            return Decision(False)
        difference = self.difference(memory.reference, indicator)
        healthy = all(bool(residual.isfinite().all()) for residual in memory.residuals)
        if not math.isfinite(difference) or not healthy:
            return Decision(False, difference)
        threshold = options.residual_diff_threshold
        if options.l1_hidden_states_diff_threshold is not None:
            threshold = options.l1_hidden_states_diff_threshold
        if threshold >= 1:
            return Decision(True, difference)
        close = abs(difference - threshold) <= self.margin * threshold
        return Decision(seen if close and seen is not None else difference < threshold, difference, close)

    def difference(self, reference: Tensor, indicator: Tensor) -> float:
        change, size = (indicator - reference).abs(), reference.abs()
        important = self.options.important_condition_threshold
        if important > 0:
            tokens = (change.mean(-1) / size.mean(-1) > important) | ~change.mean(-1).isfinite()
            if tokens.any():
                change, size = change[tokens], size[tokens]
        return (change.mean() / size.mean()).item()

    def count(self, memory: Memory, decision: Decision) -> None:
        memory.step += 1
        if decision.reused:
            memory.reused += 1
            memory.reused_in_a_row += 1
            memory.accumulated += decision.difference or 0.0
        else:
            memory.reused_in_a_row, memory.accumulated = 0, 0.0
