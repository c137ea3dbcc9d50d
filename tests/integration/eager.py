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


@dataclass(frozen=True)
class Blocks:
    """Where the repeated blocks of a model are, and what they hand on."""

    stacks: tuple[str, ...]
    """Module lists of the trunk, in the order in which they run."""
    returns: tuple[str, ...] = ("hidden_states",)
    """The arguments of a block that its results replace, in the order of the results."""

    between: bool = False
    """Whether the model adds something to the picture tokens between the blocks: that is then always of this step."""

    @property
    def picture(self) -> str:
        """The argument whose change is compared: the picture tokens."""
        return "hidden_states" if "hidden_states" in self.returns else self.returns[0]


PICTURE_LAST, PICTURE_FIRST = ("encoder_hidden_states", "hidden_states"), ("hidden_states", "encoder_hidden_states")
DOUBLE_SINGLE = ("transformer_blocks", "single_transformer_blocks")
BLOCKS: dict[str, Blocks] = {
    "flux": Blocks(DOUBLE_SINGLE, PICTURE_LAST),
    "sd3": Blocks(("transformer_blocks",), PICTURE_LAST),
    "qwen": Blocks(("transformer_blocks",), PICTURE_LAST),
    "wan": Blocks(("blocks",)),
    "pixart": Blocks(("transformer_blocks",)),
    "cogvideox": Blocks(("transformer_blocks",), PICTURE_FIRST),
    "hunyuan_video": Blocks(DOUBLE_SINGLE, PICTURE_FIRST),
    "dit": Blocks(("transformer_blocks",)),
}


@dataclass
class Memory:
    """What one branch remembers."""

    reference: Tensor | None = None
    residuals: dict[str, Tensor] = field(default_factory=dict)
    decisions: str = ""
    differences: list[float | None] = field(default_factory=list)


class EagerF1B0:
    """The first block decides, all others are reused as one residual of every stream that they hand on.

    ``branches``: the calls of one step, in turn.
    """

    def __init__(
        self, module: nn.Module, blocks: str | Blocks, threshold: float, warmup: int = 1, branches: int = 1
    ) -> None:
        self.threshold, self.warmup, self.branches = threshold, warmup, branches
        self.layout = BLOCKS[blocks] if isinstance(blocks, str) else blocks
        self.blocks: list[Any] = [block for stack in self.layout.stacks for block in module.get_submodule(stack)]
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
            if position == 0:
                result = original(*args, **kwargs)
                self.entered = self.streams(result)
                self.decide(self.entered[self.layout.picture] - given[self.layout.picture])
                return result
            if self.reuse:
                streams = {name: given.get(name) for name in self.layout.returns}
                if position == last:
                    start = streams if self.layout.between else self.entered
                    streams |= {n: start[n] + residual for n, residual in self.memory.residuals.items()}
                values = tuple(streams.values())
                return values if len(values) > 1 else values[0]
            result = original(*args, **kwargs)
            if self.layout.between:
                picture, kept = self.layout.picture, self.memory.residuals if position > 1 else {}
                change = self.streams(result)[picture] - given[picture]
                self.memory.residuals = {picture: kept[picture] + change if kept else change}
            elif position == last:
                left = self.streams(result)
                self.memory.residuals = {n: value - self.entered[n] for n, value in left.items() if value is not None}
            return result

        return forward

    def streams(self, result: Any) -> dict[str, Tensor]:
        """What a block returns, by the arguments that it replaces."""
        values = result if isinstance(result, tuple) else (result,)
        return dict(zip(self.layout.returns, values, strict=True))

    def whose(self) -> Memory:
        """The memory of the next call."""
        memory = self.memories[self.calls % self.branches]
        self.calls += 1
        return memory

    def decide(self, indicator: Tensor) -> None:
        self.memory = memory = self.whose()
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
