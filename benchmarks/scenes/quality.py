"""How close scenes are to the uncached ones, and whether the judge reads their captions in them."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from benchmarks.demo import psnr
from benchmarks.quality import Quality, frechet_distance
from benchmarks.scenes.caption import Layouts
from benchmarks.scenes.check import held_out
from benchmarks.scenes.judge import load_judge

REAL = 2000
"""Held-out real scenes that distributions are compared with."""


class SceneReference:
    """The uncached pictures [N, 3, 32, 32] with what their captions say, to compare others with."""

    def __init__(self, pictures: Tensor, layouts: Layouts) -> None:
        self._pictures, self._layouts, self._judge = pictures, layouts, load_judge()
        self._uncached = self._judge.features(pictures)
        self._real = self._judge.features(held_out(REAL)[0])

    def quality(self, pictures: Tensor) -> Quality:
        """Judge pictures that were drawn from the same noise and captions; accuracy is that of attributes."""
        features = self._judge.features(pictures)
        return Quality(
            psnr(pictures, self._pictures),
            float(structural_similarity_index_measure(pictures, self._pictures, data_range=1.0)),
            self._judge.accuracy(pictures, self._layouts),
            frechet_distance(features, self._uncached),
            frechet_distance(features, self._real),
        )
