"""Trained weights that a metric reads: which file, from where, and that nothing is fetched unasked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fxcache.errors import OptionError
from fxcache.metrics.errors import UnavailableError

__all__ = ["Weights", "WeightsPath", "as_hub", "read_tensors"]

WeightsPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Weights:
    """One file that a library would download, and how it is named in errors."""

    metric: str
    file: str
    url: str
    megabytes: int
    reader: str
    """The library that reads it."""

    def __str__(self) -> str:
        return f"{self.file} ({self.url}, {self.megabytes} MB, read by {self.reader})"

    def locate(self, given: WeightsPath | None, download: bool) -> Path | None:
        """Return the file that was given or is in torch's cache; None where the library may download it.

        Raises OptionError for a path without a file, UnavailableError where a download was not allowed.
        """
        if given is not None:
            path = Path(given)
            if not path.is_file():
                raise OptionError.of("weights", os.fspath(given), f"the path of the file {self}")
            return path
        cached = Path(torch.hub.get_dir(), "checkpoints", self.file)
        if cached.is_file():
            return cached
        if download:
            return None
        raise UnavailableError(missing(self.metric, f"the file {self}", f"it is not in {cached.parent}"))

    def wrong(self, path: Path | None, reason: str) -> OptionError:
        """Return the error for a file that is not this one."""
        return OptionError.of("weights", str(path), f"the tensors of {self}; {reason}")


def missing(metric: str, wanted: str, where: str) -> str:
    """Return the sentence for weights that are not there."""
    return (
        f"{metric} needs {wanted}; {where}, and nothing is downloaded unasked: "
        "give its path (weights=PATH, --weights PATH) or allow the download (download=True, --download)"
    )


def read_tensors(weights: Weights, path: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read a file of tensors and check names and shapes of some that it must hold; raises OptionError."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a file that is not one of torch.save: any kind
        raise weights.wrong(path, f"torch.load says: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(tensors, dict):
        raise weights.wrong(path, f"the file holds a {type(tensors).__name__}")
    for name, shape in wanted.items():
        if name not in tensors:
            raise weights.wrong(path, f"the file has no {name}")
        if tuple(tensors[name].shape) != shape:
            raise weights.wrong(path, f"its {name} has the shape {list(tensors[name].shape)}, not {list(shape)}")
    return tensors


@contextmanager
def as_hub(path: Path, file: str) -> Iterator[None]:
    """Let torch.hub find a file under the name that it would download: torchvision takes no path."""
    before = torch.hub.get_dir()
    with TemporaryDirectory(prefix="fxcache-metrics-") as folder:
        checkpoints = Path(folder, "checkpoints")
        checkpoints.mkdir()
        (checkpoints / file).symlink_to(path.resolve())
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)
