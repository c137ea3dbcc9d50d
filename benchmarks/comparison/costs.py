"""Floating point operations of a model, whole and block by block, counted while one step runs uncompiled."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.comparison.entries import Entry
from benchmarks.comparison.measure import draw, watching
from benchmarks.comparison.models import Model, blocks_of, twin
from benchmarks.schedules import Schedule


def _attention_on_cpu(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    count: int = sdpa_flop_count(query, key, value)
    return count


# the counter knows the attention of GPUs only
_MORE = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_on_cpu}


@dataclass(frozen=True)
class Costs:
    """Operations of one call of the transformer for one branch and one picture."""

    call: int
    blocks: tuple[int, ...]

    def of(self, schedule: Schedule, decisions: Sequence[str], skipped_blocks: float | None = None) -> float:
        """Operations of a generation that reused the blocks between those that always run, or so many of them."""
        middle = self.blocks[schedule.first_blocks : len(self.blocks) - schedule.last_blocks]
        letters = "".join(decisions)
        if skipped_blocks is not None:
            return len(letters) * self.call - skipped_blocks * sum(middle) / len(middle)
        if set(letters) - set("C."):
            raise ValueError(f"{decisions}: expected steps that are computed or reused as a whole")
        return len(letters) * self.call - letters.count(".") * sum(middle)


def operations_by_letter(entry: Entry, schedule: Schedule) -> dict[str, float]:
    """Operations per call of the transformer for a picture, by what was decided; counted with nothing compiled."""
    totals = [0]
    counter = FlopCounterMode(display=False, custom_mapping=_MORE)
    noting = watching(entry, lambda _: totals.append(counter.get_total_flops()))
    with torch.compiler.set_stance("force_eager"), counter, noting:
        decisions = draw(entry, schedule, 0, 1).decisions
    steps = [after - before for before, after in itertools.pairwise(totals)]
    found: dict[str, list[float]] = {}
    for work, letters in zip(steps, zip(*decisions, strict=True), strict=True):
        # branches that differ share a letter of their own
        letter = letters[0] if len(set(letters)) == 1 else "m"
        found.setdefault(letter, []).append(work / len(letters))
    return {letter: sum(works) / len(works) for letter, works in found.items()}


def costs_of(model: Model, pipeline: Any) -> Costs:
    """Count one step of the model for one picture."""
    probe = twin(pipeline)
    blocks = blocks_of(probe.transformer)
    marks: list[int] = []
    with FlopCounterMode(display=False, custom_mapping=_MORE) as counter:
        for block in blocks:
            block.register_forward_pre_hook(lambda *_: marks.append(-counter.get_total_flops()))
            block.register_forward_hook(lambda *_: marks.append(counter.get_total_flops()))
        model.draw(probe, 0, 1, 1)
    pairs = [before + after for before, after in zip(marks[::2], marks[1::2], strict=True)]
    return Costs(int(counter.get_total_flops()) // model.branches, tuple(pairs[: len(blocks)]))
