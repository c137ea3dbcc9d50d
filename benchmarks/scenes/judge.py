"""The judge: two small networks of scikit-learn that read scenes, trained in under a minute on its own scenes."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from benchmarks.scenes.caption import COLOURS, NOTHING, PLACES, SHAPES, SIZES, Layouts
from benchmarks.scenes.data import QUARTER, draw, random_layouts

SEED = 2_147_000_001
"""Of the judge's scenes: training draws from `seed * 1_000_003 + step`, which a small seed keeps far below."""
SCENES = 20_000
RATES = ((2e-3, 9), (3e-4, 4))
"""Learning rates, each for a number of passes."""
WIDTHS = (len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1)
"""Classes of a place's shape, colour and size, the first of each for "nothing"."""


class Judge:
    """Reads images [N, 3, 32, 32] in [0, 1]."""

    def __init__(self, places: MLPClassifier, backgrounds: MLPClassifier) -> None:
        self._places, self._backgrounds = places, backgrounds

    def read(self, images: Tensor) -> Layouts:
        """The scene seen in each image."""
        place, background = self._logits(images)
        shape, colour, size = place.split(WIDTHS, dim=2)
        shapes = shape.argmax(dim=2) - 1
        # an object has a colour and a size, however faint
        kinds = torch.stack((shapes, colour[..., 1:].argmax(dim=2), size[..., 1:].argmax(dim=2)), dim=2)
        return Layouts(kinds.masked_fill(shapes[..., None] == NOTHING, NOTHING), background.argmax(dim=1))

    def features(self, images: Tensor) -> Tensor:
        """What the judge sees in each image: the logits of all classes, float64 [N, 73]."""
        place, background = self._logits(images)
        return torch.cat((place.flatten(1), background), dim=1)

    def accuracy(self, images: Tensor, layouts: Layouts) -> float:
        """The share, 0 to 1, of attributes that are read as wanted.

        Attributes are the background, "nothing" of an empty place, and shape, colour and size of any other.
        """
        right, counted = _compare(self.read(images), layouts)
        return (right & counted).sum().item() / counted.sum().item()

    def whole_accuracy(self, images: Tensor, layouts: Layouts) -> float:
        """The share of images, 0 to 1, of which every attribute is read as wanted."""
        right, _ = _compare(self.read(images), layouts)
        return right.all(dim=1).float().mean().item()

    def attribute_accuracy(self, images: Tensor, layouts: Layouts) -> dict[str, float]:
        """The share of right readings of "shape" (or nothing), "colour", "size" and "background"."""
        right, counted = _compare(self.read(images), layouts)
        groups = [slice(kind, -1, 3) for kind in range(3)] + [slice(-1, None)]
        return {
            name: (right & counted)[:, group].sum().item() / max(counted[:, group].sum().item(), 1)
            for name, group in zip(("shape", "colour", "size", "background"), groups, strict=True)
        }

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of each place [N, 4, 17] and of the background [N, 5]."""
        images = images.detach().float().cpu()
        place = _last_layer(self._places, _quarters(images)).reshape(len(images), len(PLACES), sum(WIDTHS))
        return place, _last_layer(self._backgrounds, _pixels(images))


@cache
def load_judge(scenes: int = SCENES) -> Judge:
    """Train the judge on scenes of its own; the same judge on every call."""
    generator = torch.Generator().manual_seed(SEED)
    layouts = random_layouts(scenes, generator)
    images = draw(layouts, generator)
    kinds = layouts.things.flatten(0, 1) + 1
    wanted = torch.cat([torch.eye(width)[kinds[:, kind]] for kind, width in enumerate(WIDTHS)], dim=1).int()
    places = _train(_quarters(images), wanted.numpy(), hidden=256)
    # backgrounds are so easy that a fifth of the scenes will do
    rows = slice(None, max(scenes // 5, 1))
    return Judge(places, _train(_pixels(images[rows]), layouts.backgrounds[rows].numpy(), hidden=32))


def _train(inputs: np.ndarray, wanted: np.ndarray, hidden: int) -> MLPClassifier:
    network = MLPClassifier((hidden,), batch_size=128, random_state=0, warm_start=True, n_iter_no_change=1000)
    with warnings.catch_warnings():
        # every training ends with its number of passes
        warnings.simplefilter("ignore", ConvergenceWarning)
        for learning_rate, passes in RATES:
            network.set_params(learning_rate_init=learning_rate, max_iter=passes)
            network.fit(inputs, wanted)
    return network


def _last_layer(network: MLPClassifier, inputs: np.ndarray) -> Tensor:
    hidden = np.maximum(inputs @ network.coefs_[0] + network.intercepts_[0], 0)
    return torch.from_numpy(hidden @ network.coefs_[1] + network.intercepts_[1]).double()


def _pixels(images: Tensor) -> np.ndarray:
    return (images.flatten(1) - 0.5).numpy()


def _quarters(images: Tensor) -> np.ndarray:
    """The pixels of each place, float32 [4 N, 768], the places of one image after one another."""
    rows = images.unflatten(3, (2, QUARTER)).unflatten(2, (2, QUARTER))
    return _pixels(rows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2))


def _compare(seen: Layouts, wanted: Layouts) -> tuple[Tensor, Tensor]:
    """Which attributes are right, and which are counted, both bool [N, 13]: three a place, then the background."""
    wanted = wanted.to("cpu")
    right = torch.cat(((seen.things == wanted.things).flatten(1), (seen.backgrounds == wanted.backgrounds)[:, None]), 1)
    counted = wanted.things != NOTHING
    counted[..., 0] = True
    return right, torch.cat((counted.flatten(1), torch.ones(len(wanted), 1, dtype=torch.bool)), dim=1)
