"""LPIPS, by torchmetrics with a network of torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import torch

from fxcache.errors import OptionError
from fxcache.metrics.errors import UnavailableError, require
from fxcache.metrics.frames import Frame
from fxcache.metrics.pixels import compare, mean_result
from fxcache.metrics.result import MetricResult
from fxcache.metrics.weights import Weights, WeightsPath, as_hub, read_tensors

__all__ = ["NETWORKS", "lpips"]


class _Network(NamedTuple):
    weights: Weights
    smallest: int
    """Side of the smallest picture that all of its layers can read."""
    first_layer: tuple[int, ...]
    """Shape of features.0.weight."""


def _of_torchvision(file: str, megabytes: int) -> Weights:
    return Weights("lpips", file, f"https://download.pytorch.org/models/{file}", megabytes, "torchvision")


NETWORKS = {
    "alex": _Network(_of_torchvision("alexnet-owt-7be5be79.pth", 233), 31, (64, 3, 11, 11)),
    "vgg": _Network(_of_torchvision("vgg16-397923af.pth", 528), 16, (64, 3, 3, 3)),
    "squeeze": _Network(_of_torchvision("squeezenet1_1-b8a52dc0.pth", 5), 17, (64, 3, 3, 3)),
}
"""What `net` may be. The small file with the trained weighting of the layers comes with torchmetrics."""


def lpips(
    a: Any,
    b: Any,
    *,
    net: str = "alex",
    weights: WeightsPath | None = None,
    download: bool = False,
    device: str | torch.device = "cpu",
    progress: bool | None = False,
) -> MetricResult:
    """Return the mean LPIPS distance (Zhang et al. 2018, version 0.1); greyscale pictures are read as RGB.

    Raises UnavailableError without the network's weights, see NETWORKS, or where a picture is too small for it.
    """
    if net not in NETWORKS:
        raise OptionError.of("net", net, f"one of {', '.join(NETWORKS)}")
    network = NETWORKS[net]
    require("torchvision", "torchvision", "lpips")
    library = require("torchmetrics.image.lpip", "torchmetrics", "lpips")
    path = network.weights.locate(weights, download)
    metric = _load(library, net, path).to(device)

    def one(first: Frame, second: Frame) -> float:
        if min(first.pixels.shape[1:]) < network.smallest:
            least = f"{network.smallest}x{network.smallest}"
            raise UnavailableError(f"lpips with {net} needs pictures of at least {least}, {first.name} is {first.size}")
        with torch.no_grad():
            return float(metric(_colour(first).to(device), _colour(second).to(device)))

    items, _ = compare("lpips", a, b, one, progress)
    return mean_result("lpips", "", False, items, {"net": net})


def _load(library: Any, net: str, path: Path | None) -> Any:
    weights = NETWORKS[net].weights
    build = library.LearnedPerceptualImagePatchSimilarity
    if path is None:
        try:
            return build(net_type=net, normalize=True)
        except URLError as error:
            raise UnavailableError(f"lpips: {weights.url} cannot be downloaded: {error.reason}") from error
    read_tensors(weights, path, {"features.0.weight": NETWORKS[net].first_layer})
    try:
        with as_hub(path, weights.file):
            return build(net_type=net, normalize=True)
    except RuntimeError as error:  # of load_state_dict
        raise weights.wrong(path, str(error).partition("\n")[0]) from error


def _colour(frame: Frame) -> torch.Tensor:
    return frame.unit().float().expand(1, 3, -1, -1)
