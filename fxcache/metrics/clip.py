"""CLIP score, by torchmetrics with a CLIP model of transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxcache.errors import OptionError
from fxcache.metrics.errors import UnavailableError, require
from fxcache.metrics.frames import Frame
from fxcache.metrics.pixels import mean_result
from fxcache.metrics.prompts import Prompts, score
from fxcache.metrics.result import MetricResult
from fxcache.metrics.weights import WeightsPath, missing

__all__ = ["DEFAULT_MODEL", "clip_score"]

DEFAULT_MODEL = "openai/clip-vit-large-patch14"
_FILES = "config.json, model.safetensors, preprocessor_config.json and the files of its tokenizer"


def clip_score(
    images: Any,
    prompts: Prompts = None,
    *,
    weights: WeightsPath | None = None,
    download: bool = False,
    device: str | torch.device = "cpu",
    progress: bool | None = False,
) -> MetricResult:
    """Return the mean CLIP score (Hessel et al. 2021): 100 times the cosine of picture and prompt, at least 0.

    `weights` is a folder with a CLIP model as transformers saves it, or its name on the hub (by default
    DEFAULT_MODEL), which is looked up in the cache alone unless `download` is set.
    """
    functional = require("torchmetrics.functional.multimodal", "torchmetrics", "clip_score")
    name = DEFAULT_MODEL if weights is None else os.fspath(weights)
    model, processor = _load(name, download)
    model.to(device)

    def one(frame: Frame, text: str) -> float:
        with torch.no_grad():
            return float(functional.clip_score(frame.rgb_bytes()[0].to(device), text, lambda: (model, processor)))

    items = score("clip_score", images, prompts, one, progress)
    details = {"model": name, "cut_prompts": len(processor.cut)}
    return mean_result("clip_score", "", True, items, details, "pictures")


class _Model(nn.Module):
    """Gives tensors of features, as torchmetrics expects; those of transformers 5 are inside of an output object."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, pixels: Tensor) -> Any:
        return _features(self.model.get_image_features(pixel_values=pixels))

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Any:
        return _features(self.model.get_text_features(input_ids=ids, attention_mask=mask))


class _Processor:
    """Cuts prompts that are too long before their end mark, which the text model reads, and remembers them."""

    def __init__(self, processor: Any, longest: int) -> None:
        self._processor, self._longest = processor, longest
        self.cut: set[str] = set()

    def __call__(self, *, text: list[str] | None = None, images: Any = None, **arguments: Any) -> Any:
        if text is None:
            return self._processor(images=images, return_tensors="pt")
        lengths = map(len, self._processor.tokenizer(text, verbose=False)["input_ids"])
        self.cut.update(one for one, length in zip(text, lengths, strict=True) if length > self._longest)
        return self._processor(text=text, truncation=True, max_length=self._longest, **arguments)


def _features(output: Any) -> Any:
    return output if isinstance(output, Tensor) else output.pooler_output


def _load(name: str, download: bool) -> tuple[Any, Any]:
    transformers = require("transformers", "transformers", "clip_score")
    is_folder = Path(name).is_dir()
    if not is_folder and (Path(name).exists() or name.count("/") != 1 or name.startswith((".", "/"))):
        raise OptionError.of("weights", name, f"a folder with {_FILES}, or a name such as {DEFAULT_MODEL}")
    local = {"local_files_only": is_folder or not download}
    try:
        config = transformers.AutoConfig.from_pretrained(name, **local)
        if config.model_type != "clip":
            raise OptionError.of("weights", name, f"a CLIP model; its config.json says {config.model_type!r}")
        model, info = transformers.CLIPModel.from_pretrained(name, output_loading_info=True, **local)
        processor = transformers.CLIPProcessor.from_pretrained(name, **local)
    except OptionError:
        raise
    except (OSError, ValueError) as error:
        if is_folder:
            reason = str(error).partition("\n")[0]
            raise OptionError.of("weights", name, f"a folder with {_FILES}; {reason}") from error
        wanted = f"the CLIP model {name} (https://huggingface.co/{name}: {_FILES}), read by transformers"
        raise UnavailableError(missing("clip_score", wanted, "it is not in the cache of the hub")) from error
    if info["missing_keys"]:  # transformers would go on with random numbers
        raise OptionError.of("weights", name, f"all weights of the model; {sorted(info['missing_keys'])[0]} is missing")
    return _Model(model.eval()), _Processor(processor, model.config.text_config.max_position_embeddings)
