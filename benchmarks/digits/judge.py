"""The judge: a support vector machine that reads digits, trained in a second on digits the transformer never saw."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

from benchmarks.digits.data import judge_digits


class Judge:
    """Reads images [N, 16, 16] in [0, 1]."""

    def __init__(self, classifier: SVC) -> None:
        self._classifier = classifier

    def read(self, images: Tensor) -> Tensor:
        """The digit seen in each image, int64 [N]."""
        pixels = images.detach().float().cpu().flatten(1).numpy()
        return torch.from_numpy(np.asarray(self._classifier.predict(pixels))).long()

    def margins(self, images: Tensor) -> Tensor:
        """What the judge sees in each image: the decision values of all 45 pairs of classes, float64 [N, 45]."""
        pixels = images.detach().float().cpu().flatten(1).numpy()
        return torch.from_numpy(np.asarray(self._classifier.decision_function(pixels))).double()

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """The share of images, 0 to 1, that are read as their label."""
        return (self.read(images) == torch.as_tensor(labels).cpu()).float().mean().item()


@cache
def load_judge() -> Judge:
    """Train the judge on its half of the real digits; the same judge on every call."""
    images, labels = judge_digits()
    return Judge(SVC(C=10.0, gamma=0.02, decision_function_shape="ovo").fit(images.flatten(1).numpy(), labels.numpy()))
