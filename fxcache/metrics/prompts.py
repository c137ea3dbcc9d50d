"""How well pictures show what was asked for: which prompt belongs to which picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fxcache.metrics.errors import InputError, UnavailableError
from fxcache.metrics.frames import Frame
from fxcache.metrics.media import Media, open_media
from fxcache.metrics.pairing import shown
from fxcache.metrics.result import ItemValue

__all__ = ["Prompts", "read_prompts", "score"]

Prompts = str | Sequence[str] | None
"""One for all pictures, one for each, or None: the file of the same name that ends in .txt."""


def read_prompts(path: str | os.PathLike[str], option: str) -> list[str]:
    """Read a file with one prompt per line; empty lines at the end do not count."""
    lines = _text(Path(path), f"{option}={os.fspath(path)!r}").rstrip().splitlines()
    empty = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if not lines or empty:
        where = f"line {empty[0]} is empty" if empty else "it has none"
        raise InputError(f"{option}={os.fspath(path)!r}: expected one prompt per line, {where}")
    return [line.strip() for line in lines]


def score(
    metric: str, images: Any, prompts: Prompts, one: Callable[[Frame, str], float], progress: bool | None
) -> tuple[ItemValue, ...]:
    """Return the value of every picture or frame with the prompt of its file."""
    media = open_media(images, "images")
    texts = _texts(metric, media, prompts)
    decoded = ((frame, text) for entry, text in zip(media.entries, texts, strict=True) for frame in entry.frames())
    return tuple(
        ItemValue(frame.name, one(frame, text)) for frame, text in shown(decoded, metric, media.frames, progress)
    )


def _texts(metric: str, media: Media, prompts: Prompts) -> list[str]:
    if isinstance(prompts, str):
        texts = [prompts] * len(media.entries)
    elif prompts is not None:
        texts = list(prompts)
        if len(texts) != len(media.entries):
            raise InputError(
                f"{media.label} holds {len(media.entries)} pictures or videos and there are {len(texts)} prompts: "
                "expected as many, in the order of the names"
            )
    else:
        texts = [_beside(metric, entry.path) for entry in media.entries]
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"prompt {text!r}: expected text")
    return texts


def _beside(metric: str, path: Path | None) -> str:
    file = None if path is None else path.with_suffix(".txt")
    if file is None or not file.is_file():
        where = "" if file is None else f"; there is no {file}"
        raise UnavailableError(
            f"{metric} needs prompts: one for all (--prompt TEXT, prompts='...'), one per line (--prompts FILE, "
            f"prompts=[...]), or a .txt beside every picture{where}"
        )
    return _text(file, str(file)).strip()


def _text(path: Path, label: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{label}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{label}: expected text in UTF-8, {error.reason} at byte {error.start}") from error
