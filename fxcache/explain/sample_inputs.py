"""Guesses for the arguments of a denoising model, from their names, their annotations and the model's configuration.

Every argument gets an ordered list of candidates; `fxcache.explain.search` tries them.  Nothing here knows a model:
names that are common among diffusion transformers say what an argument is, the configuration says how wide it is.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

SIDE = 64
"""Side of the grid of image tokens."""
TEXT = 512
AUDIO = 256
PICTURE = 257
"""Tokens of a picture given as conditioning."""

_LATENTS = re.compile(r"^(hidden_states|sample|latents?|noisy_latents|x)$")
_TIME = re.compile(r"(^|_)(t|time|times|timesteps?|sigmas?)($|_)")
_MASK = re.compile(r"mask")
_IDS = re.compile(r"(^|_)ids$")
_POOLED = re.compile(r"pooled")
_TEXT_WORD = re.compile(r"(^|_)(text|txt|caption|cap|prompt|encoder|context|llama3?|t5|bth|embeddings?)($|_|\d)")
_IMAGE_WORD = re.compile(r"(^|_)(image|img|vision|visual|clip)($|_)")
_AUDIO_WORD = re.compile(r"(^|_)audio($|_)")
_SIZE_WORD = re.compile(r"(^|_)(size|coords|resolution)($|_)")
_TEXT_WIDTHS = (
    "joint_attention_dim caption_channels cap_feat_dim text_embed_dim text_embedding_dim in_text_dim text_in_dim"
    " text_hidden_dim text_dim dit_text_dim context_in_dim context_dim llm_features_dim condition_dim"
    " cross_attention_dim encoder_hidden_size embedding_dim hidden_size dim"
).split()
_POOLED_WIDTHS = "pooled_projection_dim pooled_dim in_text_dim2 text_emb_dim".split()
_IMAGE_WIDTHS = "image_embed_dim image_dim image_proj_dim".split()
_USUAL = frozenset(
    "timestep timesteps img_ids txt_ids added_cond_kwargs img_shapes encoder_hidden_states_mask num_frames height width"
    " audio_num_frames".split()
)
"""Optional arguments that pipelines always give."""
_CHANNELS = "in_channels in_visual_dim latent_channels latent_dim latent_channel in_dim".split()


class Absent:
    """The argument is left to its default."""

    def __repr__(self) -> str:
        return "left out"


ABSENT = Absent()


@dataclass(frozen=True)
class Layout:
    """How the latents look, with everything that must fit to it."""

    name: str
    shape: tuple[int, ...]
    grid: tuple[int, int, int]
    """Frames, rows and columns of tokens."""
    wrapped: bool = False
    """The latents come as a list with one tensor per picture."""

    @property
    def tokens(self) -> int:
        """Tokens of the latents."""
        return self.grid[0] * self.grid[1] * self.grid[2]


def layouts(config: Mapping[str, Any], wants_list: bool) -> list[Layout]:
    """Forms that the latents may have, the likeliest first."""
    channels = next((config[key] for key in _CHANNELS if _number(config.get(key))), 16)
    patch = config.get("patch_size", 1)
    spatial = patch[-1] if isinstance(patch, (list, tuple)) and patch else patch if _number(patch) else 1
    sample: Any = config.get("sample_size")
    rows, columns = int(config.get("sample_height") or 60), int(config.get("sample_width") or 90)
    frames: int = config.get("video_length") or (((config.get("sample_frames") or 49) - 1) // 4 + 1)
    side: int = sample if _number(sample) else SIDE * max(spatial, 2 if spatial > 1 else 1)
    square = (1, side // spatial, side // spatial)
    tokens = Layout("tokens", (1, SIDE * SIDE, channels), (1, SIDE, SIDE))
    image = Layout("image", (1, channels, side, side), square)
    video = Layout("video", (1, channels, frames, rows, columns), (frames, rows // spatial, columns // spatial))
    swapped = Layout("video, frames first", (1, frames, channels, rows, columns), video.grid)
    last = Layout("video, channels last", (1, frames, rows, columns, channels), video.grid)
    still = Layout("video of squares", (1, channels, frames, side, side), (frames, *square[1:]))
    series = Layout("series", (1, channels, 1024), (1, 1, 1024))
    rows_of = Layout("rows", (1, 1024, channels), (1, 1, 1024))
    vector = Layout("vector", (1, channels), (1, 1, 1))
    if wants_list:
        return [
            Layout("list of images", (channels, 1, side * 2, side * 2), (1, side * 2 // 2, side * 2 // 2), True),
            Layout("list of videos", (channels, frames, rows, columns), video.grid, True),
        ]
    if (isinstance(patch, (list, tuple)) and len(patch) == 3) or "patch_size_t" in config or "sample_frames" in config:
        return [video, swapped, tokens, last, still, image]
    if "video_length" in config:
        return [still, video, tokens]
    if (_number(patch) and patch > 1) or "sample_size" in config:
        return [image, tokens, video, rows_of, series, vector]
    return [tokens, image, series, rows_of, video, vector]


def candidates(parameter: inspect.Parameter, layout: Layout, config: Mapping[str, Any]) -> list[Any]:
    """Ordered guesses for one argument; tensors are on the meta device. Empty when there is none."""
    name = parameter.name
    optional = parameter.default is not inspect.Parameter.empty
    found = list(_guesses(name, str(parameter.annotation), layout, config))
    if not optional:
        return found
    if parameter.default is None and _expected(name, config):
        return [*found, ABSENT]
    return [ABSENT, *found] if parameter.default is None else [ABSENT]


def text_width(config: Mapping[str, Any]) -> list[int]:
    """Widths that text states may have."""
    return [width for key in _TEXT_WIDTHS for width in _widths(config.get(key))] or [4096]


def text_length(config: Mapping[str, Any]) -> int:
    """Number of text tokens."""
    keys = ("max_text_seq_length", "max_sequence_length", "text_len", "num_embeddings")
    return next((config[key] for key in keys if _number(config.get(key))), TEXT)


def _depth(config: Mapping[str, Any]) -> int:
    """Blocks of all stacks together, as far as the configuration tells."""
    return sum(config.get(key) or 0 for key in ("num_layers", "num_single_layers"))


def _expected(name: str, config: Mapping[str, Any]) -> bool:
    """Say whether an argument with the default None is one that pipelines always give."""
    if name == "guidance":
        return bool(config.get("guidance_embeds", config.get("guidance_embed", False)))
    if name == "class_labels":
        return not any(config.get(key) for key in _TEXT_WIDTHS[:-2])
    if _POOLED.search(name):
        return any(config.get(key) for key in _POOLED_WIDTHS)
    if _IMAGE_WORD.search(name) and not _IDS.search(name) and "shapes" not in name:
        return False
    if name == "encoder_hidden_states":
        return True
    return name in _USUAL


def _guesses(name: str, annotation: str, layout: Layout, config: Mapping[str, Any]) -> Iterable[Any]:
    widths, text_tokens = text_width(config), text_length(config)
    is_list = "list" in annotation.lower()
    if _LATENTS.match(name):
        latents = _meta(*layout.shape)
        yield [latents] if layout.wrapped else latents
    elif name in ("num_frames", "height", "width"):
        yield layout.grid[("num_frames", "height", "width").index(name)]
    elif name == "audio_num_frames":
        yield AUDIO
    elif _MASK.search(name):
        yield from _masks(name, layout, text_tokens)
    elif _AUDIO_WORD.search(name) and "hidden_states" in name and "encoder" not in name:
        channels = config.get("audio_in_channels") or config.get("in_audio_dim")
        yield from (_meta(1, AUDIO, width) for width in _widths(channels))
    elif name == "img_shapes":
        yield from ([[layout.grid]], [layout.grid])
    elif _SIZE_WORD.search(name) and "int]" not in annotation:
        yield _meta(1, 2)
    elif name == "added_cond_kwargs":
        yield {"resolution": _meta(1, 2), "aspect_ratio": _meta(1, 1)}
        yield {"resolution": None, "aspect_ratio": None}
    elif name == "class_labels" or "token_id" in name:
        yield _meta(1, dtype=torch.int64)
        yield _meta(1, layout.tokens, dtype=torch.int64)
    elif "token_drop" in name:
        yield _meta(1, layout.tokens, dtype=torch.bool)
    elif _IDS.search(name) or "rope_pos" in name:
        yield from _positions(name, layout, config)
    elif _TIME.search(name) or name.startswith("timestep"):
        yield from (_meta(1), _meta(1, dtype=torch.int64), _meta(1, layout.tokens), _meta(1, layout.grid[0]), _meta())
    elif name in ("guidance", "fps") or "scale" in name:
        yield from (_meta(1), _meta())
    elif _POOLED.search(name):
        yield from (_meta(1, width) for key in _POOLED_WIDTHS for width in _widths(config.get(key)))
    elif name.endswith(("_lens", "_lengths")):
        yield _meta(1, dtype=torch.int64)
    elif _IMAGE_WORD.search(name) or "image_embeds" in name:
        image_widths = [width for key in _IMAGE_WIDTHS for width in _widths(config.get(key))] or [1280]
        yield from (_meta(1, PICTURE, width) for width in image_widths)
    elif _TEXT_WORD.search(name) or "cond" in name or "proj" in name:
        for width in widths:
            text = _meta(1, text_tokens, width)
            yield from ([text[0]], [text], [text] * _depth(config)) if is_list else (text, text[0])
        yield _meta(1, widths[0])
    elif "int" in annotation:
        yield from (layout.tokens if "len" in name else 1, layout.tokens)
    elif "float" in annotation:
        yield 1.0
    elif "bool" in annotation:
        yield False
    elif "Tensor" in annotation:
        yield from (_meta(1), _meta(1, layout.tokens), _meta(*layout.shape))


def _masks(name: str, layout: Layout, text_tokens: int) -> Iterable[torch.Tensor]:
    length = layout.tokens if not _TEXT_WORD.search(name) and _IMAGE_WORD.search(name) else text_tokens
    for dtype in (torch.int64, torch.bool, torch.float32):
        yield _meta(1, length, dtype=dtype)
    yield _meta(1, layout.tokens, dtype=torch.bool)
    yield _meta(1, layout.tokens + text_tokens, dtype=torch.bool)
    yield _meta(1, 1, *layout.shape[2:])
    yield _meta(1, 1, *layout.shape[-2:])


def _positions(name: str, layout: Layout, config: Mapping[str, Any]) -> Iterable[Any]:
    axes = next((v for k, v in config.items() if "axes_dim" in k and isinstance(v, (list, tuple))), (1, 1, 1))
    text = bool(_TEXT_WORD.search(name))
    text_tokens = text_length(config)
    length = text_tokens if text else layout.tokens
    if name.startswith("input"):
        yield _meta(1, text_tokens, dtype=torch.int64)
    if "rope_pos" in name and not text:
        yield tuple(_meta(size, dtype=torch.int64) for size in layout.grid)
    if "rope_pos" in name and text:
        yield _meta(text_tokens, dtype=torch.int64)
    for total in (length,) if name != "position_ids" else (length + text_tokens, length):
        for lead in ((), (1,)):
            yield _meta(*lead, total, len(axes))
    yield _meta(1, length, dtype=torch.int64)


def _widths(value: Any) -> list[int]:
    if _number(value):
        return [value]
    return [v for v in value if _number(v)] if isinstance(value, (list, tuple)) else []


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
