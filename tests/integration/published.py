"""The rules of FORA, TeaCache, MagCache and EasyCache written down a second time: eager, on an open trunk.

Each branch of each generation is a list of what it has seen. The whole trunk is skipped on a reused step, and what it
added at the last computed one is added again.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from fxcache.options import Options
from tests.models.tiny_trunk import Streams, TinyTrunk


@dataclass(frozen=True)
class Seen:
    """One step: what the first block reads, what enters the trunk, and, if it was computed, what leaves it."""

    read: Tensor
    entered: Streams
    left: Streams | None = None


@dataclass
class Memory:
    """One branch of one generation, oldest step first."""

    steps: list[Seen] = field(default_factory=list)
    numbers: list[float | None] = field(default_factory=list)
    """What was compared with the threshold."""

    @property
    def decisions(self) -> str:
        return "".join("." if seen.left is None else "C" for seen in self.steps)

    @property
    def computed(self) -> list[int]:
        return [step for step, seen in enumerate(self.steps) if seen.left is not None]


class EagerPublished:
    """The reference of one method; `total` is the number of steps of every generation."""

    def __init__(self, model: TinyTrunk, options: Options, total: int) -> None:
        self.model, self.options, self.total = model, options, total
        self.memories: dict[Hashable, Memory] = {}

    def call(self, key: Hashable, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        model, memory = self.model, self.memories.setdefault(key, Memory())
        entered, fixed = model.prefix(x, t, c)
        reused, number = self.decide(memory, Seen(self.read(entered, fixed), entered))
        if reused:
            last = memory.steps[memory.computed[-1]]
            assert last.left is not None
            streams = tuple(now + (b - a) for now, a, b in zip(entered, last.entered, last.left, strict=True))
        else:
            streams = entered
            for index in range(len(model.blocks)):
                streams = model.block(index, streams, fixed)
        memory.steps.append(Seen(self.read(entered, fixed), entered, None if reused else streams))
        memory.numbers.append(number)
        return model.suffix(streams, fixed, x)

    def read(self, entered: Streams, fixed: Streams) -> Tensor:
        block = self.model.blocks[0]
        norm = block.norm if self.model.two_streams else block.first
        scale = block.modulation(fixed[-1]).unsqueeze(1).chunk(2, dim=-1)[0]
        return norm(entered[0]) * (1 + scale)

    def decide(self, memory: Memory, now: Seen) -> tuple[bool, float | None]:
        """Whether to reuse, and the number that was compared."""
        options, step = self.options, len(memory.steps)
        if step < options.max_warmup_steps or step >= self.total - options.last_steps:
            return False, None
        in_a_row = step - 1 - memory.computed[-1]
        if options.max_continuous_cached_steps != -1 and in_a_row >= options.max_continuous_cached_steps:
            return False, None
        return getattr(self, options.method)(memory, now, in_a_row)

    def interval(self, memory: Memory, now: Seen, in_a_row: int) -> tuple[bool, None]:
        return in_a_row + 1 < self.options.cache_interval, None

    def magcache(self, memory: Memory, now: Seen, in_a_row: int) -> tuple[bool, None]:
        if len(memory.steps) < round(self.options.retention_ratio * self.total):
            return False, None
        table = self.options.magnitude_ratios
        assert len(table) == self.total
        wrong, size = 0.0, 1.0
        for step in range(memory.computed[-1] + 1, len(memory.steps) + 1):
            size *= table[step]
            wrong += abs(1 - size)
        return wrong <= self.options.residual_diff_threshold, None

    def teacache(self, memory: Memory, now: Seen, in_a_row: int) -> tuple[bool, float]:
        change = relative(now.read, memory.steps[-1].read)
        added = max(0.0, float(np.polyval(self.options.rescale_coefficients, change)))
        return self.below(memory, in_a_row, added)

    def easycache(self, memory: Memory, now: Seen, in_a_row: int) -> tuple[bool, float | None]:
        if len(memory.computed) < 2:
            return False, None
        before, last = (memory.steps[step] for step in memory.computed[-2:])
        assert before.left is not None and last.left is not None
        rate = distance(last.left[0], before.left[0]) / distance(last.entered[0], before.entered[0])
        moved = distance(now.entered[0], memory.steps[-1].entered[0])
        return self.below(memory, in_a_row, rate * moved / float(last.left[0].double().abs().sum()))

    def below(self, memory: Memory, in_a_row: int, added: float) -> tuple[bool, float]:
        before = memory.numbers[-1] if in_a_row else 0.0
        assert before is not None
        return before + added < self.options.residual_diff_threshold, before + added


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().sum())


def relative(now: Tensor, before: Tensor) -> float:
    return distance(now, before) / float(before.double().abs().sum())
