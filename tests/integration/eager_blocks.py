"""The cache on any uncompiled model: the calls of its blocks are counted, and a description says what they hand on.

Independent of fxcache: nothing is traced, and whoever writes the description has read the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Streams = tuple[Tensor, ...]


@dataclass(frozen=True)
class Cut:
    """The blocks of a model, and the values that they change."""

    blocks: Callable[[Any], Sequence[nn.Module]]
    """The blocks in the order of their calls; one that is called again stands there again."""
    streams: int = 1
    """How many of the first arguments of a block its results replace."""
    picture: int = 0
    """Which of them is compared."""
    raw: tuple[bool, bool] = (False, False)
    """Whether the value is compared, and stored, instead of what the blocks have added to it."""


@dataclass
class EagerBlocks:
    """One context of the cache, with `first` blocks that decide and `last` ones that always run."""

    module: nn.Module
    cut: Cut
    first: int
    last: int
    threshold: float
    warmup: int = 1
    decisions: str = ""
    differences: list[float | None] = field(default_factory=list)
    reference: Tensor | None = None
    stored: Streams = ()

    def __post_init__(self) -> None:
        blocks = self.cut.blocks(self.module)
        self.number, self.called, self.reuse = len(blocks), 0, False
        for block in {id(block): block for block in blocks}.values():
            block.forward = self.counted(block.forward)

    def counted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            position, self.called = self.called, (self.called + 1) % self.number
            given: Streams = args[: self.cut.streams]
            if position == 0:
                self.start = given
            if self.reuse and self.first <= position < self.number - self.last:
                left = self.restored() if position == self.number - self.last - 1 else given
            else:
                result = original(*args, **kwargs)
                left = result if isinstance(result, tuple) else (result,)
            if position == self.first - 1:
                self.entered = left
                self.decide()
            if position == self.number - self.last - 1 and not self.reuse:
                self.stored = left if self.cut.raw[1] else self.minus(left, self.entered)
            if position == self.number - 1:
                self.reuse = False
            return left if len(left) > 1 else left[0]

        return forward

    def restored(self) -> Streams:
        if self.cut.raw[1]:
            return self.stored
        return tuple(stream + residual for stream, residual in zip(self.entered, self.stored, strict=True))

    def minus(self, after: Streams, before: Streams) -> Streams:
        return tuple(a - b for a, b in zip(after, before, strict=True))

    def decide(self) -> None:
        """Compare what the first blocks have added with what they added when the others last ran."""
        picture = self.cut.picture
        seen = self.entered[picture] - (0 if self.cut.raw[0] else self.start[picture])
        difference = None
        if self.reference is not None and len(self.decisions) >= self.warmup:
            difference = float((seen - self.reference).abs().mean() / self.reference.abs().mean())
        self.reuse = difference is not None and difference < self.threshold
        if not self.reuse:
            self.reference = seen
        self.decisions += "." if self.reuse else "C"
        self.differences.append(difference)
