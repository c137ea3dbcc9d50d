"""Configuration classes of the user API, with the field names that cache-dit made common."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from fxcache.options import Options

__all__ = ["DBCacheConfig"]


@dataclass(frozen=True, kw_only=True)
class DBCacheConfig:
    """When a step is reused: the policy part of :class:`~fxcache.options.Options`, whose fields it shares.

    Each field means what the option of the same name means; ``python -m fxcache options`` lists them.

    >>> DBCacheConfig(Fn_compute_blocks=1).to_options(inner_backend="eager").resolve_blocks(12)
    (1, 0)
    """

    Fn_compute_blocks: int | None = None
    Bn_compute_blocks: int = 0
    residual_diff_threshold: float = 0.08
    max_warmup_steps: int = 8
    warmup_interval: int = 1
    max_cached_steps: int = -1
    max_continuous_cached_steps: int = -1
    max_accumulated_residual_diff_threshold: float | None = None
    num_inference_steps: int | None = None
    l1_hidden_states_diff_threshold: float | None = None
    important_condition_threshold: float = 0.0
    downsample_factor: int = 1

    def __post_init__(self) -> None:
        checked = self.to_options()
        for entry in dataclasses.fields(self):
            object.__setattr__(self, entry.name, getattr(checked, entry.name))

    def to_options(self, **extra: Any) -> Options:
        """Return the options of the backend with this policy; ``extra`` are further options by name.

        Raises OptionError for a wrong value or an unknown name. A name that both give is taken from ``extra``.
        """
        own = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return Options.from_mapping({**own, "method": "dbcache", **extra})
