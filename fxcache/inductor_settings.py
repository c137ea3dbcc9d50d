"""The option `inner_options` as settings of Inductor: a mode of `torch.compile` may be among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch._inductor
import torch._inductor.config

from fxcache.checks import nearest
from fxcache.errors import OptionError

__all__ = ["inductor_settings"]


def inductor_settings(inner_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to set in Inductor: the settings behind ``mode``, if that is given, and the others, which win.

    Raises OptionError for a mode or a setting that Inductor does not have.

    Example:
        >>> inductor_settings({"mode": "max-autotune", "coordinate_descent_tuning": False, "max_fusion_size": 7})
        {'max_autotune': True, 'triton.cudagraphs': True, 'coordinate_descent_tuning': False, 'max_fusion_size': 7}
    """
    settings = dict(inner_options)
    mode = settings.pop("mode", None)
    if mode is not None:
        modes = torch._inductor.list_mode_options()
        if mode not in modes:
            raise OptionError.of("inner_options: mode", mode, f"one of {', '.join(map(repr, modes))}")
        settings = {**modes[mode], **settings}
    known = torch._inductor.config.get_config_copy()
    unknown = next((name for name in settings if name.replace("-", "_") not in known), None)
    if unknown is not None:
        raise OptionError(f"inner_options: Inductor has no setting {unknown!r}: {nearest(unknown, known)}")
    return settings
