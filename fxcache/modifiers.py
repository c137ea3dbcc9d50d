"""Options for one transformer of a pipeline that has several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fxcache import checks
from fxcache.configs import CacheConfig, CalibratorConfig, changed_options
from fxcache.errors import OptionError
from fxcache.options import Options

__all__ = ["Modifiers", "ParamsModifier", "chosen_modifiers"]


class ParamsModifier:
    """What differs for one transformer: the fields that were given to the configs, and options by name.

    A config for another method or calibrator than the pipeline's counts with all its fields.

    >>> from fxcache import DBCacheConfig
    >>> ParamsModifier(cache_config=DBCacheConfig(max_warmup_steps=2), max_contexts=4).changes(Options())
    {'max_warmup_steps': 2, 'method': 'dbcache', 'max_contexts': 4}
    """

    def __init__(
        self,
        cache_config: CacheConfig | None = None,
        calibrator_config: CalibratorConfig | None = None,
        **options: Any,
    ) -> None:
        self.cache_config, self.calibrator_config = cache_config, calibrator_config
        checked = Options.from_mapping(changed_options(Options(), cache_config, calibrator_config, options))
        self.options = {name: getattr(checked, name) for name in options}

    def changes(self, base: Options) -> dict[str, Any]:
        """Return what is to be changed of the options of all transformers, by name."""
        return changed_options(base, self.cache_config, self.calibrator_config, self.options)

    def __eq__(self, other: object) -> bool:
        return self._parts() == other._parts() if isinstance(other, ParamsModifier) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        configs = {"cache_config": self.cache_config, "calibrator_config": self.calibrator_config}
        shown = {**{name: config for name, config in configs.items() if config is not None}, **self.options}
        return f"ParamsModifier({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def _parts(self) -> list[Any]:
        configs = (self.cache_config, self.calibrator_config)
        return [*(None if config is None else (type(config), config.given()) for config in configs), self.options]


Modifiers = ParamsModifier | Sequence[ParamsModifier | None] | Mapping[str, ParamsModifier]
"""One for the first transformer, one for each by its place (None: nothing differs), or by its name."""


def chosen_modifiers(names: Sequence[str], modifiers: Modifiers | None) -> dict[str, ParamsModifier]:
    """Return the modifier of each transformer that has one, by its name.

    Raises OptionError for a name that no transformer has, and for more modifiers than transformers.
    """
    if modifiers is None:
        return {}
    if isinstance(modifiers, Mapping):
        for name in modifiers:
            if name not in names:
                raise OptionError(f"params_modifiers[{name!r}]: no such transformer, {checks.nearest(name, names)}")
        chosen: dict[str, Any] = dict(modifiers)
    elif isinstance(modifiers, ParamsModifier | list | tuple):
        entries = [modifiers] if isinstance(modifiers, ParamsModifier) else modifiers
        if len(entries) > len(names):
            raise OptionError(
                f"params_modifiers: expected at most {len(names)}, one for each transformer ({', '.join(names)}), "
                f"found {len(entries)}; all blocks of one transformer follow one decision"
            )
        chosen = dict(zip(names, entries, strict=False))
    else:
        raise OptionError.of("params_modifiers", modifiers, "a ParamsModifier, a list of them, or a mapping by name")
    for name, modifier in chosen.items():
        if modifier is not None and not isinstance(modifier, ParamsModifier):
            raise OptionError.of(f"params_modifiers[{name!r}]", modifier, "a ParamsModifier")
    return {name: modifier for name, modifier in chosen.items() if modifier is not None}
