"""What a metric is given, opened: files, folders, videos, arrays and lists of them, one frame in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from fxcache.metrics.errors import InputError, require
from fxcache.metrics.frames import Frame, check_depth, from_array, from_pil, from_tensor

__all__ = ["IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "Entry", "Media", "open_media"]

IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What pillow raises about a file that is not what its name says, or cut off, or absurdly large."""


@dataclass(frozen=True)
class Entry:
    """One picture, or one video or animation."""

    name: str
    frames: Callable[[], Iterator[Frame]]
    """Decodes from the start with every call."""
    path: Path | None = None
    length: int | None = 1
    """Number of frames; None where only decoding tells."""


@dataclass(frozen=True)
class Media:
    """Everything behind one argument."""

    label: str
    """The argument with its value, for errors."""
    entries: tuple[Entry, ...]
    by_name: bool = False
    """Entries come from a folder and are paired by the stem of their name, not by position."""

    @property
    def frames(self) -> int | None:
        """Number of frames, if known without decoding."""
        lengths = [entry.length for entry in self.entries]
        return None if None in lengths else sum(filter(None, lengths))


def open_media(value: Any, label: str) -> Media:
    """Return what an argument holds: a path, a picture of pillow, an array, a tensor, or a list of these.

    Arrays are [H, W], [H, W, C] or [N, H, W, C], tensors [H, W], [C, H, W] or [N, C, H, W]. Raises InputError.
    """
    if isinstance(value, Media):
        return value
    if isinstance(value, (str, os.PathLike)):
        return _open_path(Path(value), f"{label}={os.fspath(value)!r}")
    if isinstance(value, (list, tuple)):
        return Media(label, _open_list(value, label))
    return Media(label, _open_object(value, label))


def _open_list(values: Sequence[Any], label: str) -> tuple[Entry, ...]:
    if not values:
        raise InputError(f"{label} is an empty list: expected at least one picture")
    found: list[Entry] = []
    for place, value in enumerate(values):
        name = f"{label}[{place}]"
        if isinstance(value, (list, tuple)):
            raise InputError(f"{name} is a {type(value).__name__}: expected a picture or a file")
        if isinstance(value, (str, os.PathLike)) and Path(value).is_dir():
            raise InputError(f"{name}={os.fspath(value)!r} is a folder: expected a picture or a file")
        found += open_media(value, name).entries
    return tuple(found)


def _open_object(value: Any, name: str) -> tuple[Entry, ...]:
    if isinstance(value, Image.Image):
        return (_one(name, lambda: from_pil(value, name)),)
    for kind, convert in ((numpy.ndarray, from_array), (torch.Tensor, from_tensor)):
        if isinstance(value, kind):
            if value.ndim != 4:
                return (_one(name, lambda convert=convert: convert(value, name)),)  # type: ignore[misc]
            if not len(value):
                raise InputError(f"{name} has no pictures (shape {list(value.shape)})")
            return tuple(
                _one(f"{name}[{place}]", lambda convert=convert, one=one, place=place: convert(one, f"{name}[{place}]"))  # type: ignore[misc]
                for place, one in enumerate(value)
            )
    raise InputError(
        f"{name} is a {type(value).__name__}: expected a path, a picture of pillow, an array of numpy, "
        "a tensor of torch, or a list of these"
    )


def _one(name: str, read: Callable[[], Frame]) -> Entry:
    return Entry(name, lambda: iter((read(),)))


def _open_path(path: Path, label: str) -> Media:
    if path.is_dir():
        return Media(label, _open_folder(path, label), by_name=True)
    if not path.exists():
        raise InputError(f"{label}: there is no such file or folder")
    return Media(label, (_open_file(path),))


def _open_folder(folder: Path, label: str) -> tuple[Entry, ...]:
    known = {*IMAGE_SUFFIXES, *VIDEO_SUFFIXES}
    files = [path for path in folder.iterdir() if not path.name.startswith(".") and path.suffix.lower() in known]
    paths = sorted((path for path in files if path.is_file()), key=lambda path: path.stem)
    if not paths:
        inside = sum(path.is_dir() for path in folder.iterdir())
        raise InputError(
            f"{label} is a folder without pictures and videos ({inside} folders inside are not looked into): "
            f"expected files that end in {', '.join(sorted(known))}"
        )
    for former, path in pairwise(paths):
        if former.stem == path.stem:
            raise InputError(
                f"{label} holds {former.name} and {path.name}: expected every name once, whatever its ending"
            )
    return tuple(_open_file(path) for path in paths)


def _open_file(path: Path) -> Entry:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return Entry(str(path), lambda: _decode_video(path), path, length=None)
    try:
        with Image.open(path) as image:
            length = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} is no picture that pillow can read: expected a picture, or a video that ends in "
            f"{', '.join(VIDEO_SUFFIXES)}"
        ) from error
    except _BROKEN as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return Entry(str(path), lambda: _decode_image(path, length), path, length)


def _decode_image(path: Path, length: int) -> Iterator[Frame]:
    try:
        with Image.open(path) as image:
            check_depth(image, str(path))
            if length == 1:
                yield from_pil(ImageOps.exif_transpose(image) if _turned(image) else image, str(path))
                return
            for number, frame in enumerate(ImageSequence.Iterator(image), 1):
                yield from_pil(frame, f"{path}, frame {number}", animated=True)
    except InputError:
        raise
    except _BROKEN as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _turned(image: Image.Image) -> bool:
    return bool(image.getexif().get(0x0112, 1) != 1)  # 0x0112 is the orientation


def _decode_video(path: Path) -> Iterator[Frame]:
    av = require("av", "PyAV (package av)", f"the video {path}")
    number = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path} holds no video")
            for number, frame in enumerate(container.decode(container.streams.video[0]), 1):
                yield from_array(frame.to_ndarray(format="rgb24"), f"{path}, frame {number}")
    except av.error.FFmpegError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not number:
        raise InputError(f"{path} holds no frame")
