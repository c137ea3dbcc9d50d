"""F1B0 on an uncompiled transformer of diffusers: its blocks are wrapped, and somebody says which branch is next.

Independent of fxcache: it sees blocks where fxcache sees graphs, and counts calls where fxcache looks at tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tests.models.pipelines import TinyPipeline

STACKS: dict[str, tuple[str, ...]] = {
    "flux": ("transformer_blocks", "single_transformer_blocks"),
    "sd3": ("transformer_blocks",),
    "qwen": ("transformer_blocks",),
    "wan": ("blocks",),
    "pixart": ("transformer_blocks",),
    "cogvideox": ("transformer_blocks",),
    "hunyuan_video": ("transformer_blocks", "single_transformer_blocks"),
    "dit": ("transformer_blocks",),
}
"""Module lists of the trunk, in the order in which they run."""

PICTURE_AT = {"flux": 1, "sd3": 1, "qwen": 1, "cogvideox": 0, "hunyuan_video": 0}
"""Place of the picture tokens in what a block returns; the other place is the text. Missing: picture alone."""


@dataclass
class Memory:
    """What one branch remembers."""

    reference: Tensor | None = None
    residual: Tensor | None = None
    decisions: str = ""
    differences: list[float | None] = field(default_factory=list)


class EagerF1B0:
    """The first block decides, all others are reused as one residual of the picture tokens.

    ``branches``: the calls of one step, in turn.
    """

    def __init__(self, module: nn.Module, name: str, threshold: float, warmup: int = 1, branches: int = 1) -> None:
        self.threshold, self.warmup, self.branches = threshold, warmup, branches
        self.picture_at = PICTURE_AT.get(name)
        self.blocks: list[Any] = [block for stack in STACKS[name] for block in module.get_submodule(stack)]
        for position, block in enumerate(self.blocks):
            block.forward = self.wrapped(position, block.forward)
        self.begin()

    def begin(self) -> None:
        """Begin a generation."""
        self.memories = [Memory() for _ in range(self.branches)]
        self.calls = 0

    @property
    def decisions(self) -> list[str]:
        """Per branch, the steps in a word as `fxcache.summary` spells them."""
        return [memory.decisions for memory in self.memories]

    def wrapped(self, position: int, original: Callable[..., Any]) -> Callable[..., Any]:
        signature, last = inspect.signature(original), len(self.blocks) - 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            states = given["hidden_states"]
            if position == 0:
                result = original(*args, **kwargs)
                self.entered = self.picture(result)
                self.decide(self.entered - states)
                return result
            if self.reuse:
                if position == last:
                    states = states + self.memory.residual
                both = (states, given.get("encoder_hidden_states"))
                return states if self.picture_at is None else both if self.picture_at == 0 else both[::-1]
            result = original(*args, **kwargs)
            if position == last:
                self.memory.residual = self.picture(result) - self.entered
            return result

        return forward

    def picture(self, result: Any) -> Tensor:
        tokens: Tensor = result if self.picture_at is None else result[self.picture_at]
        return tokens

    def decide(self, indicator: Tensor) -> None:
        self.memory = memory = self.memories[self.calls % self.branches]
        self.calls += 1
        difference = None
        if memory.reference is not None and len(memory.decisions) >= self.warmup:
            difference = ((indicator - memory.reference).abs().mean() / memory.reference.abs().mean()).item()
        self.reuse = difference is not None and difference < self.threshold
        if not self.reuse:
            memory.reference = indicator
        memory.decisions += "." if self.reuse else "C"
        memory.differences.append(difference)


def mixed_threshold(build: Callable[[], TinyPipeline], name: str, steps: int, **request: Any) -> float:
    """A threshold, far from every difference, that lets some steps of every branch be reused and others not."""
    tiny = build()
    oracle = EagerF1B0(tiny.transformer, name, threshold=float("inf"), branches=branches_of(tiny, **request))
    tiny.run(steps=steps, **request)
    for third in range(2, steps - 1):
        seen = [sorted(d for d in memory.differences if d is not None) for memory in oracle.memories]
        candidate = round(sum(values[third - 1] + values[third] for values in seen) / (2 * len(seen)), 3)
        oracle.threshold = candidate
        oracle.begin()
        tiny.run(steps=steps, **request)
        measured = [d for memory in oracle.memories for d in memory.differences if d is not None]
        clear = all(abs(difference - candidate) > 1e-3 * candidate for difference in measured)
        if clear and all("." in word and "C" in word[1:] for word in oracle.decisions):
            return candidate
        oracle.threshold = float("inf")
        oracle.begin()
        tiny.run(steps=steps, **request)
    raise AssertionError(f"no threshold splits the steps of {name}: {oracle.memories}")


def branches_of(tiny: TinyPipeline, cfg: bool = True, **_: Any) -> int:
    """Calls of the transformer in one step."""
    return 2 if tiny.separate and cfg else 1
