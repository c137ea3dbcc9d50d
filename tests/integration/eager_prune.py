"""DBPrune on an uncompiled transformer of diffusers: every block is wrapped and looks at what it is given.

Independent of fxcache: it sees blocks where fxcache sees graphs, and keeps what it needs as Python values.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tests.integration.eager import BLOCKS


@dataclass
class UnitMemory:
    """What one unit of one branch remembers."""

    reference: Tensor | None = None
    residuals: tuple[Tensor | None, ...] = ()
    older: tuple[Tensor | None, ...] = ()
    """Those of the computed step before."""
    computed_at: list[int] = field(default_factory=list)
    measured: tuple[int, int, float] | None = None
    """Step at which a difference was taken, step of the reference it was taken to, the difference."""


@dataclass
class BranchMemory:
    """What one branch remembers."""

    units: dict[int, UnitMemory]
    decisions: list[str] = field(default_factory=list)
    """Per step one letter per unit: C computed, . pruned."""
    differences: list[list[float]] = field(default_factory=list)
    pruned_steps: int = 0
    streak: int = 0


@dataclass
class Rules:
    """The knobs, under fxcache's names where there are any."""

    first: int = 1
    last: int = 0
    exempt: Sequence[int] = ()
    group: int = 1
    threshold: float = 0.1
    warmup: int = 2
    lagging: bool = True
    most: float = math.inf
    in_a_row: float = math.inf
    linear: bool = False
    """Carry on the straight line through the last two computed steps of the unit."""
    relax: float | None = None
    cap: float = 0.0


class EagerDBPrune:
    """Each unit is a run of blocks; its first block decides, its last one adds the stored residuals."""

    def __init__(self, module: nn.Module, name: str, rules: Rules, branches: int = 1) -> None:
        self.rules, self.branches = rules, branches
        layout = BLOCKS[name]
        self.returns = layout.returns
        self.names = (layout.picture, *(other for other in layout.returns if other != layout.picture))
        self.blocks: list[Any] = [block for stack in layout.stacks for block in module.get_submodule(stack)]
        self.unit_of: dict[int, int] = {}
        begun, length = None, 0
        for number in range(rules.first, len(self.blocks) - rules.last):
            if number in rules.exempt:
                begun = None
            elif begun is None or length == rules.group:
                begun, length = number, 1
                self.unit_of[number] = number
            else:
                self.unit_of[number] = begun
                length += 1
        for position, block in enumerate(self.blocks):
            block.forward = self.wrapped(position, block.forward)
        self.begin()

    def begin(self) -> None:
        """Begin a generation."""
        units = set(self.unit_of.values())
        self.memories = [BranchMemory({unit: UnitMemory() for unit in units}) for _ in range(self.branches)]
        self.calls = 0

    def ends(self, position: int) -> bool:
        return self.unit_of.get(position + 1) != self.unit_of[position]

    def wrapped(self, position: int, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            if position == 0:
                self.begin_step()
            if position not in self.unit_of:
                return original(*args, **kwargs)
            streams: tuple[Any, ...] = tuple(given[name] for name in self.names)
            unit = self.unit_of[position]
            if unit == position:
                self.entered = streams
                self.skip = self.decide(unit, streams[0])
            memory = self.memory.units[unit]
            if self.skip:
                if self.ends(position):
                    pairs = zip(streams, self.forecast(memory), strict=True)
                    streams = tuple(None if b is None else a + b for a, b in pairs)
                return self.packed(streams)
            result = original(*args, **kwargs)
            if self.ends(position):
                left = self.unpacked(result)
                memory.older = memory.residuals
                # the last block of some models gives no text
                memory.residuals = tuple(None if a is None else a - b for a, b in zip(left, self.entered, strict=True))
                memory.reference = self.entered[0]
                memory.computed_at.append(self.step)
            return result

        return forward

    def forecast(self, memory: UnitMemory) -> tuple[Tensor | None, ...]:
        if not (self.rules.linear and memory.older):
            return memory.residuals
        last, before = memory.computed_at[-1], memory.computed_at[-2]
        far = (self.step - last) / (last - before)
        if far > 1:
            return memory.residuals
        pairs = zip(memory.residuals, memory.older, strict=True)
        return tuple(None if a is None or b is None else a + far * (a - b) for a, b in pairs)

    def packed(self, streams: tuple[Tensor | None, ...]) -> Any:
        """Streams, the picture first, as a block returns them."""
        by_name = dict(zip(self.names, streams, strict=True))
        values = tuple(by_name[name] for name in self.returns)
        return values if len(values) > 1 else values[0]

    def unpacked(self, result: Any) -> tuple[Any, ...]:
        by_name = dict(zip(self.returns, result if isinstance(result, tuple) else (result,), strict=True))
        return tuple(by_name[name] for name in self.names)

    def begin_step(self) -> None:
        self.memory = memory = self.memories[self.calls % self.branches]
        self.step = self.calls // self.branches
        self.calls += 1
        if memory.decisions:
            pruned = "." in memory.decisions[-1]
            memory.pruned_steps += pruned
            memory.streak = memory.streak + 1 if pruned else 0
        memory.decisions.append("")
        memory.differences.append([])
        rules = self.rules
        may = self.step >= rules.warmup and memory.pruned_steps < rules.most and memory.streak < rules.in_a_row
        self.may_prune = may

    def decide(self, unit: int, states: Tensor) -> bool:
        memory, now = self.memory.units[unit], math.nan
        expected = math.nan
        if memory.measured is not None:
            at, to, seen = memory.measured
            expected = seen * (self.step - memory.computed_at[-1]) / (at - to)
        if memory.reference is not None:
            now = ((states - memory.reference).abs().mean() / memory.reference.abs().mean()).item()
            memory.measured = (self.step, memory.computed_at[-1], now)
        difference = expected if self.rules.lagging else now
        skip = False
        if self.may_prune and not math.isnan(difference):
            skip = difference < self.limit()
            self.memory.differences[-1].append(difference)
        self.memory.decisions[-1] += "." if skip else "C"
        return skip

    def limit(self) -> float:
        rules = self.rules
        sample = [value for value in self.memory.differences[-1][:5] if value > 0]
        if rules.relax is None or not sample:
            return rules.threshold
        return max(rules.threshold, min(rules.relax * sum(sample) / len(sample), rules.cap))


def spelled(words: Sequence[str]) -> str:
    """The decisions of a branch as `fxcache.summary` spells them."""
    return "".join("." if set(word) == {"."} else "m" if "." in word else "C" for word in words)
