"""One picture as every metric gets it, from pillow, numpy or torch; what cannot be compared safely is refused here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from fxcache.metrics.errors import InputError, UnavailableError

__all__ = ["Frame", "check_depth", "from_array", "from_pil", "from_tensor"]

_CHANNELS = {1: "grey", 3: "RGB", 4: "RGBA"}
_RANGES = {torch.uint8: 255.0, torch.uint16: 65535.0, torch.float64: 1.0}
_DTYPES = "uint8 (0 to 255), uint16 (0 to 65535) or a floating type (0 to 1)"


@dataclass(frozen=True)
class Frame:
    """A picture or a frame of a video."""

    name: str
    pixels: Tensor
    """[1 or 3, H, W]: uint8, uint16, or float64 in [0, 1]."""
    mode: str
    """grey, RGB or RGBA; an alpha channel has been seen to be opaque, and is gone from the pixels."""

    @property
    def data_range(self) -> float:
        """The largest value that its type stands for: 255, 65535 or 1."""
        return _RANGES[self.pixels.dtype]

    @property
    def format(self) -> str:
        """What two pictures must share besides their size."""
        return f"{self.mode} {str(self.pixels.dtype).removeprefix('torch.').replace('float64', 'floating')}"

    @property
    def size(self) -> str:
        """Width and height in words."""
        return f"{self.pixels.shape[2]}x{self.pixels.shape[1]}"

    def unit(self) -> Tensor:
        """Return the pixels as float64 in [0, 1], [1, C, H, W]."""
        return self.pixels[None].double() / self.data_range

    def rgb_bytes(self) -> Tensor:
        """Return the pixels as uint8 RGB, [1, 3, H, W]: grey three times, floating values rounded."""
        if self.pixels.dtype == torch.uint16:
            raise UnavailableError(f"{self.name} has 16 bit per channel, and the network of this metric reads 8 bit")
        levels = (self.pixels * 255).round().byte() if self.pixels.is_floating_point() else self.pixels
        return levels[None].expand(1, 3, -1, -1)


def from_pil(image: Image.Image, name: str, animated: bool = False) -> Frame:
    """Return a picture of pillow: greyscale (8 or 16 bit), RGB, RGBA, or a palette.

    Frames of an animation are all RGB: pillow gives the first one a palette, and later ones none.
    """
    if image.mode in ("I;16", "I;16L", "I;16B"):
        return from_array(numpy.asarray(image).astype(numpy.uint16), name)
    check_depth(image, name)
    if animated or image.mode in ("P", "PA"):
        return _opaque(numpy.asarray(image.convert("RGBA")), name, "RGB")
    if image.mode == "LA" or (image.mode in ("L", "RGB") and image.has_transparency_data):
        return _opaque(numpy.asarray(image.convert("RGBA")), name, "RGBA")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "RGB", "RGBA"):
        raise InputError(
            f"{name} has the mode {image.mode} of pillow: expected 1, L, LA, P, RGB, RGBA or I;16 (convert it first)"
        )
    return from_array(numpy.asarray(image), name)


def from_array(array: Any, name: str) -> Frame:
    """Return a picture of numpy: [H, W] or [H, W, C] with 1, 3 or 4 channels."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _CHANNELS):
        raise InputError(f"{name} is an array of shape {list(array.shape)}: expected [H, W] or [H, W, C], C 1, 3 or 4")
    if array.dtype.kind == "f":
        array = array.astype(numpy.float64)
    elif array.dtype not in (numpy.uint8, numpy.uint16):
        raise InputError(f"{name} has the dtype {array.dtype}: expected {_DTYPES}")
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    # a copy: the array may be read-only, or change before it is compared
    return _frame(torch.from_numpy(numpy.array(planes, order="C")), name)


def from_tensor(tensor: Tensor, name: str) -> Frame:
    """Return a picture of torch: [H, W] or [C, H, W] with 1, 3 or 4 channels."""
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in _CHANNELS):
        raise InputError(f"{name} is a tensor of shape {list(tensor.shape)}: expected [H, W] or [C, H, W], C 1, 3 or 4")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.double()
    elif tensor.dtype not in _RANGES:
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise InputError(f"{name} has the dtype {dtype}: expected {_DTYPES}")
    return _frame(tensor[None] if tensor.ndim == 2 else tensor, name)


def check_depth(image: Image.Image, name: str) -> None:
    """Refuse a file with 16 bit for what pillow unpacks into 8; it shows only before the pixels are loaded."""
    packed = [str(tile[3]) for tile in getattr(image, "tile", ())]
    if image.mode in ("RGB", "RGBA", "LA") and any(";16" in words for words in packed):
        raise InputError(
            f"{name} is a 16 bit colour picture, of which pillow reads 8 bit: expected 8 bit, or 16 bit grey"
        )


def _frame(planes: Tensor, name: str) -> Frame:
    if not planes.numel():
        raise InputError(f"{name} has no pixels (shape {list(planes.shape)})")
    if planes.is_floating_point():
        low, high = float(planes.min()), float(planes.max())
        if not (low >= 0 and high <= 1):  # also if one of them is nan
            raise InputError(f"{name} has floating values from {low:.4g} to {high:.4g}: expected 0 to 1")
    mode = _CHANNELS[planes.shape[0]]
    if mode == "RGBA":
        if bool((planes[3].double() < _RANGES[planes.dtype]).any()):
            raise InputError(
                f"{name} has transparent pixels, so what is to be seen depends on what lies behind: "
                "expected an opaque picture (flatten it first)"
            )
        planes = planes[:3]
    return Frame(name, planes.contiguous(), mode)


def _opaque(array: Any, name: str, mode: str) -> Frame:
    found = from_array(array, name)
    return Frame(found.name, found.pixels, mode)
