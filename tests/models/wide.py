"""All further classes of diffusers that have a tiny form here; see `wide_image`, `wide_video` and `wide_more`."""

from __future__ import annotations

from collections.abc import Callable

from tests.models.tiny import TinyModel
from tests.models.wide_image import WIDE_IMAGE
from tests.models.wide_more import WIDE_MORE
from tests.models.wide_video import WIDE_VIDEO

WIDE: dict[str, Callable[..., TinyModel]] = {**WIDE_IMAGE, **WIDE_VIDEO, **WIDE_MORE}
"""Builders in the form of `tests.models.transformers.TRANSFORMERS`."""
