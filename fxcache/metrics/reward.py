"""ImageReward, by its own package, which wants older libraries than fxcache and so is in no extra."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fxcache.errors import OptionError
from fxcache.metrics.errors import UnavailableError, require
from fxcache.metrics.frames import Frame
from fxcache.metrics.pixels import mean_result
from fxcache.metrics.prompts import Prompts, score
from fxcache.metrics.result import MetricResult
from fxcache.metrics.weights import WeightsPath, missing

__all__ = ["image_reward"]

FILES = ("ImageReward.pt", "med_config.json")
_ORIGIN = "https://huggingface.co/THUDM/ImageReward"
_TOKENIZER = "bert-base-uncased"
_INSTALL = (
    "pip install image-reward==1.5 timm==0.6.13 fairscale==0.4.13 transformers==4.49.0, in an environment of its own "
    "(docs/metrics.md): it does not run with transformers 5"
)


def image_reward(
    images: Any,
    prompts: Prompts = None,
    *,
    weights: WeightsPath | None = None,
    download: bool = False,
    device: str | torch.device = "cpu",
    progress: bool | None = False,
) -> MetricResult:
    """Return the mean ImageReward (Xu et al. 2023); `weights` is a folder with the files of FILES.

    Its tokenizer is always that of bert-base-uncased, out of the cache of the hub.
    """
    library = require("ImageReward", "the package image-reward", "image_reward", _INSTALL)
    model = _load(library, weights, download, device)

    def one(frame: Frame, text: str) -> float:
        picture = Image.fromarray(frame.rgb_bytes()[0].permute(1, 2, 0).numpy())
        with torch.no_grad():
            return float(model.score(text, picture))

    items = score("image_reward", images, prompts, one, progress)
    return mean_result("image_reward", "", True, items, {}, "pictures")


def _load(library: Any, weights: WeightsPath | None, download: bool, device: str | torch.device) -> Any:
    folder = Path("~/.cache/ImageReward").expanduser() if weights is None else Path(weights)
    wanted = f"a folder with {' and '.join(FILES)} ({_ORIGIN}, read by image-reward)"
    there = all((folder / file).is_file() for file in FILES)
    if weights is not None and not there:
        raise OptionError.of("weights", os.fspath(weights), wanted)
    if not there and not download:
        raise UnavailableError(missing("image_reward", wanted, f"{folder} is not one"))
    if not download:
        _check_tokenizer()
    paths = {"name": str(folder / FILES[0]), "med_config": str(folder / FILES[1])} if there else {}
    with redirect_stdout(sys.stderr):  # it prints while it loads
        return library.load(**paths, device=str(device))


def _check_tokenizer() -> None:
    transformers = require("transformers", "transformers", "image_reward")
    try:
        transformers.BertTokenizer.from_pretrained(_TOKENIZER, local_files_only=True)
    except OSError as error:
        wanted = f"the tokenizer {_TOKENIZER} (https://huggingface.co/google-bert/{_TOKENIZER}: vocab.txt)"
        raise UnavailableError(
            f"image_reward needs {wanted} in the cache of the hub or in the working directory: "
            "put it there or allow the download (download=True, --download)"
        ) from error
