"""What stands in a configuration, in the words of cache-dit or in ours, translated to options.

Nothing is dropped in silence: a key that nobody knows is an error with the nearest name, and so is one that says
something about the run which is not about caching, with the place where it belongs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fxcache import checks
from fxcache.configs import config_classes
from fxcache.errors import OptionError
from fxcache.options import Options

__all__ = ["FOREIGN", "SECTIONS", "short_names", "to_options", "without_foreign"]

FOREIGN = {
    "parallelism_config": "pipe.transformer.enable_parallelism(config=...) of diffusers spreads a model over devices",
    "quantize_config": "quantization_config=... of diffusers' from_pretrained, or torchao.quantize_, changes weights",
    "attention_backend": "pipe.transformer.set_attention_backend(...) of diffusers chooses it",
    "dmd_svd_precision": "the fit of dmd needs no singular values of the stored steps here, only their products",
}
"""What is not about caching here, and who does it."""

SECTIONS = ("cache_config", "calibrator_config")
"""Mappings inside a configuration; what stands in them may as well stand beside them."""

_FIRST_STREAM_ALONE = ("taylorseer", "foca")
"""Calibrators of which ``enable_<calibrator>: true`` alone predicts the first stream only, in cache-dit's files."""


def without_foreign(given: Mapping[str, Any], ignore: Collection[str] = ()) -> dict[str, Any]:
    """Return the mapping without what belongs elsewhere; raise OptionError for that unless it is None or ignored."""
    for name in ignore:
        if name not in FOREIGN:
            raise OptionError(f"ignore={name!r}: {checks.nearest(name, FOREIGN)}")
    for name in given:
        if name in FOREIGN and name not in ignore and given[name] is not None:
            raise OptionError(f"{name} is not about caching: {FOREIGN[name]}")
    return {name: value for name, value in given.items() if name not in FOREIGN}


def short_names(kind: str) -> dict[str, str]:
    """Return the config classes' names as they stand in configurations, by method or by calibrator.

    >>> short_names("method")["dbcache"]
    'DBCache'
    """
    return {
        value: cls.__name__.removesuffix("Config").removesuffix("Calibrator")
        for value, cls in config_classes(kind).items()
    }


def to_options(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a mapping says, with the sections in it; None counts where it is a value of the option.

    >>> to_options({"cache_config": {"cache_type": "DBCache", "enable_taylorseer": True}, "max_contexts": 4})
    {'max_contexts': 4, 'method': 'dbcache', 'calibrator': 'taylorseer', 'enable_calibrator': True, \
'enable_encoder_calibrator': False}
    """
    found: dict[str, Any] = {}
    parts = _parts(section, "the configuration")
    for where, part in parts:
        _add(found, _translated(part, where))
    if any(part.get(f"enable_{kind}") for _, part in parts for kind in _FIRST_STREAM_ALONE):
        found.setdefault("enable_encoder_calibrator", False)
    return found


def _parts(section: Mapping[str, Any], where: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the mapping and the sections in it, each without sections and with its name."""
    parts = [(where, {name: value for name, value in section.items() if name not in SECTIONS})]
    for name in SECTIONS:
        inner = section.get(name)
        if inner is not None and not isinstance(inner, Mapping):
            raise OptionError.of(name, inner, "a mapping")
        parts += _parts(inner, name) if inner else []
    return parts


def _add(found: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if name in found and found[name] != value:
            raise OptionError(f"{name} is given twice, as {found[name]!r} and as {value!r}")
        found[name] = value


def _translated(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the options of one flat mapping."""
    left, found = dict(given), dict[str, Any]()
    defaults = Options().to_dict()
    if left.get("cache_type") is not None:
        _add(found, {"method": _named("cache_type", left["cache_type"], "method")})
    if left.get("calibrator_type") is not None:
        _add(found, {"calibrator": _named("calibrator_type", left["calibrator_type"], "calibrator")})
    if left.get("taylorseer_cache_type") is not None:
        _add(found, {"calibrator_cache_type": left["taylorseer_cache_type"]})
    for name in ("cache_type", "calibrator_type", "taylorseer_cache_type"):
        left.pop(name, None)
    _add(found, _switched(left))
    for name, value in left.items():
        if name not in defaults:
            words = [*defaults, "cache_type", "calibrator_type", "taylorseer_cache_type", *_switches()]
            raise OptionError(f"unknown key {name!r} in {where}: {checks.nearest(name, words)}")
        if value is not None or _takes_none(name):
            _add(found, {name: value})
    return found


def _switches() -> dict[str, str]:
    """Return the keys that switch a calibrator on, by what they switch."""
    return {f"enable_{part}{kind}": kind for kind in config_classes("calibrator") for part in ("", "encoder_")}


def _switched(left: dict[str, Any]) -> dict[str, Any]:
    """Take the keys that switch a calibrator on out of `left`, and return what they say."""
    said = {name: left.pop(name) for name in _switches() if name in left}
    for name, value in said.items():
        if value is not None:
            checks.switch(name, value)
    wanted = [kind for kind in config_classes("calibrator") if said.get(f"enable_{kind}")]
    if len(wanted) > 1:
        raise OptionError(f"{', '.join(f'enable_{kind}' for kind in wanted)}: expected one of them at most")
    for name, kind in _switches().items():
        if said.get(name) and kind not in wanted:
            raise OptionError(f"{name}=True: expected enable_{kind}=True with it")
    if not wanted:
        return {}
    found = {"calibrator": wanted[0], "enable_calibrator": True}
    encoder = said.get(f"enable_encoder_{wanted[0]}")
    return found if encoder is None else {**found, "enable_encoder_calibrator": encoder}


def _named(key: str, value: object, kind: str) -> str:
    """Return the method or calibrator that a name stands for, in either spelling."""
    shown = short_names(kind)
    for own, short in shown.items():
        if str(value).lower() in (own, short.lower()):
            return own
    raise OptionError.of(key, value, " or ".join(repr(short) for short in shown.values()))


def _takes_none(name: str) -> bool:
    try:
        Options.from_mapping({name: None})
    except OptionError:
        return False
    return True
