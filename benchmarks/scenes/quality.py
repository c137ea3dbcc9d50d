"""How close scenes are to the uncached ones, and whether the judge reads their captions in them."""

from __future__ import annotations

from torch import Tensor

from benchmarks.quality import Reference
from benchmarks.scenes.caption import Layouts
from benchmarks.scenes.check import held_out
from benchmarks.scenes.judge import load_judge

REAL = 2000
"""Held-out real scenes that distributions are compared with."""


class SceneReference(Reference):
    """The uncached pictures [N, 3, 32, 32] with what their captions say, to compare others with.

    Accuracy is that of attributes.
    """

    def __init__(self, pictures: Tensor, layouts: Layouts) -> None:
        judge = load_judge()
        self._compare_with(pictures, layouts, judge.accuracy, judge.features, held_out(REAL)[0])
