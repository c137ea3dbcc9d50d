"""FID, by torchmetrics with the Inception network of torch-fidelity."""

from __future__ import annotations

from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from fxcache.metrics.errors import UnavailableError, require
from fxcache.metrics.media import open_media
from fxcache.metrics.pairing import frames, shown
from fxcache.metrics.result import MetricResult
from fxcache.metrics.weights import Weights, WeightsPath, read_tensors

__all__ = ["INCEPTION", "fid"]

INCEPTION = Weights(
    "fid",
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    91,
    "torch-fidelity",
)
_LAYERS = {"Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3), "fc.weight": (1008, 2048)}
_FEATURES = 2048


def fid(
    a: Any,
    b: Any,
    *,
    weights: WeightsPath | None = None,
    features: nn.Module | None = None,
    download: bool = False,
    device: str | torch.device = "cpu",
    progress: bool | None = False,
) -> MetricResult:
    """Return the Fréchet distance of two sets of pictures or frames in the features of Inception (Heusel et al. 2017).

    Nothing is paired: numbers and sizes may differ. `features` takes the place of Inception and of its weights: a
    module from uint8 [1, 3, H, W] to [1, D]. Raises UnavailableError without weights or with fewer than two pictures.
    """
    library = require("torchmetrics.image.fid", "torchmetrics", "fid")
    sets = open_media(a, "a"), open_media(b, "b")
    metric = _load(library, weights, features, download).to(device)
    counts: list[int] = []
    for real, media in zip((True, False), sets, strict=True):
        count = 0
        for frame in shown(frames(media), f"fid, set {len(counts) + 1} of 2", media.frames, progress):
            with torch.no_grad():
                metric.update(frame.rgb_bytes().to(device), real=real)
            count += 1
        counts.append(count)
        if count < 2:
            raise UnavailableError(f"fid needs at least 2 pictures or frames in each set, {media.label} has {count}")
    name = "Inception" if features is None else type(features).__name__
    details = {"first": counts[0], "second": counts[1], "features": name}
    return MetricResult("fid", float(metric.compute()), "", False, sum(counts), (), details, "pictures")


def _load(library: Any, weights: WeightsPath | None, features: nn.Module | None, download: bool) -> Any:
    if features is not None:
        return library.FrechetInceptionDistance(feature=features)
    require("torch_fidelity", "torch-fidelity", "fid")
    path = INCEPTION.locate(weights, download)
    if path is not None:
        read_tensors(INCEPTION, path, _LAYERS)
    try:
        # without antialiasing, as published values are computed
        return library.FrechetInceptionDistance(
            feature=_FEATURES, feature_extractor_weights_path=None if path is None else str(path), antialias=False
        )
    except URLError as error:
        raise UnavailableError(f"fid: {INCEPTION.url} cannot be downloaded: {error.reason}") from error
    except RuntimeError as error:  # of load_state_dict
        raise INCEPTION.wrong(path, str(error).partition("\n")[0]) from error
