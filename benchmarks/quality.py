"""How close pictures are to others: one by one (PSNR, SSIM) and as a distribution (the Fréchet distance)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from benchmarks.demo import psnr
from benchmarks.digits.data import judge_digits
from benchmarks.digits.judge import load_judge


@dataclass(frozen=True)
class Quality:
    """Figures of one set of pictures."""

    psnr_db: float
    """To the uncached pictures; 99 if equal."""
    ssim: float
    """To the uncached pictures."""
    accuracy: float
    """Share that the judge reads as what was asked for."""
    frechet_uncached: float
    """Fréchet distance to the uncached pictures."""
    frechet_real: float
    """Fréchet distance to real digits that the transformer never saw."""


class Reference:
    """The uncached pictures [N, 16, 16] with their labels [N], and the real digits, to compare others with."""

    def __init__(self, pictures: Tensor, labels: Tensor) -> None:
        judge = load_judge()
        self._compare_with(pictures, labels, judge.accuracy, judge.margins, judge_digits()[0])

    def _compare_with(
        self,
        pictures: Tensor,
        asked: Any,
        accuracy: Callable[[Tensor, Any], float],
        features: Callable[[Tensor], Tensor],
        real: Tensor,
    ) -> None:
        self._pictures, self._asked, self._accuracy, self._features = pictures, asked, accuracy, features
        self._uncached, self._real = features(pictures), features(real)

    def quality(self, pictures: Tensor) -> Quality:
        """Judge pictures that were drawn from the same noise for the same conditions."""
        features = self._features(pictures)
        return Quality(
            psnr(pictures, self._pictures),
            ssim(pictures, self._pictures),
            self._accuracy(pictures, self._asked),
            frechet_distance(features, self._uncached),
            frechet_distance(features, self._real),
        )


def ssim(images: Tensor, wanted: Tensor) -> float:
    """Mean structural similarity of pictures [N, H, W] or [N, C, H, W] in [0, 1].

    Wang et al. 2004, Gaussian window of 11 x 11.
    """
    images, wanted = (each if each.dim() == 4 else each[:, None] for each in (images, wanted))
    return float(structural_similarity_index_measure(images, wanted, data_range=1.0))


def frechet_distance(features: Tensor, wanted: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features [N, D] and [M, D].

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), as in Heusel et al. 2017 (FID), with the judge in place of Inception.
    """
    means, spreads = zip(*(_fit(each) for each in (features, wanted)), strict=True)
    # tr (C1 C2)^(1/2) with C = S^T S is the sum of the singular values of S1 S2^T: exact also for fewer pictures than
    # features, where the root of the singular matrix C1 C2 is not
    cross = torch.linalg.svdvals(spreads[0] @ spreads[1].T).sum()
    distance = (means[0] - means[1]).square().sum() + sum(each.square().sum() for each in spreads) - 2 * cross
    return max(float(distance), 0.0)


def _fit(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [D], and S [N, D] of which S^T S is the covariance."""
    features = features.double()
    mean = features.mean(dim=0)
    return mean, (features - mean) / max(len(features) - 1, 1) ** 0.5
