"""What the tests of metrics compare: random pictures, a video of known frames, a tiny CLIP model in its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def picture(seed: int, shape: tuple[int, ...] = (24, 32, 3), dtype: Any = np.uint8) -> np.ndarray:
    """Random levels over the whole range of the type; floating ones in [0, 1]."""
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return generator.random(shape).astype(dtype)
    return generator.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def noisy(image: np.ndarray, sigma: float = 25.0, seed: int = 7) -> np.ndarray:
    """The same picture with Gaussian noise, of `sigma` levels of 255, cut to its range."""
    top = 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)
    noise = np.random.default_rng(seed).normal(0, sigma / 255 * top, image.shape)
    changed = np.clip(image.astype(np.float64) + noise, 0, top)
    return changed.astype(image.dtype) if image.dtype.kind == "f" else changed.round().astype(image.dtype)


def psnr_oracle(a: np.ndarray, b: np.ndarray, top: float) -> float:
    """Peak signal-to-noise ratio in float64, from its definition."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(top**2 / error))


def save_folder(folder: Path, images: Sequence[np.ndarray], suffix: str = ".png") -> Path:
    """Save pictures as 00, 01, ..."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:02}{suffix}")
    return folder


def save_video(path: Path, frames: Sequence[np.ndarray], codec: str = "ffv1", layout: str = "bgr0") -> Path:
    """Save frames [H, W, 3] with PyAV; the default codec loses nothing."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=5)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = layout
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def save_clip(folder: Path, side: int = 30, longest: int = 20) -> Path:
    """A CLIP model with random weights, whose tokenizer knows single characters, as transformers saves it."""
    from transformers import CLIPConfig, CLIPModel

    size: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "projection_dim": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)  # the scores of the pictures here are positive
        config = CLIPConfig(
            text_config={
                **size,
                "num_attention_heads": 4,
                "vocab_size": 64,
                "max_position_embeddings": longest,
                "bos_token_id": 0,
                "eos_token_id": 1,
                "pad_token_id": 1,
            },
            vision_config={**size, "num_attention_heads": 4, "image_size": side, "patch_size": 10},
            projection_dim=16,
        )
        CLIPModel(config).eval().save_pretrained(folder)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": longest})
    )
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": side},
                "crop_size": {"height": side, "width": side},
                "image_mean": [0.5, 0.4, 0.3],
                "image_std": [0.2, 0.3, 0.4],
            }
        )
    )
    return folder
