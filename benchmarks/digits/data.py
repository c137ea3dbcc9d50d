"""Real handwritten digits: scikit-learn's 8x8 scans, enlarged, and cut once into two parts that never meet.

One part trains the transformer, the other one trains the judge; no digit is in both.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate

IMAGE_SIZE = 16
NUM_CLASSES = 10
SPLIT_SEED = 1797


def _split() -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the transformer's and of the judge's digits: a fixed shuffle, cut in half."""
    order = np.random.RandomState(SPLIT_SEED).permutation(len(load_digits().target))
    half = len(order) // 2
    return order[half:], order[:half]


def _select(rows: np.ndarray) -> tuple[Tensor, Tensor]:
    digits = load_digits()
    small = torch.from_numpy(digits.images[rows]).float() / 16.0
    large = interpolate(small[:, None], size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)[:, 0]
    return large.contiguous(), torch.from_numpy(digits.target[rows]).long()


def transformer_digits() -> tuple[Tensor, Tensor]:
    """Images float32 [899, 16, 16] in [0, 1] and labels int64 [899] that the transformer learns from."""
    return _select(_split()[0])


def judge_digits() -> tuple[Tensor, Tensor]:
    """Images float32 [898, 16, 16] in [0, 1] and labels int64 [898] that the judge learns from."""
    return _select(_split()[1])
