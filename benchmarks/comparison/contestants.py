"""All contestants by name, in groups that `--methods` also takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

import fxcache
from benchmarks.comparison.entries import WAYS, Entry, Fxcache, Stage, open_ideal, open_plain


@dataclass(frozen=True)
class Contestant:
    """A way to draw the same pictures."""

    name: str
    group: str
    """`plain`, `fxcache`, `cache-dit` or `diffusers`."""
    open: Callable[[Stage], Entry]
    caches: bool = True
    """Whether steps can be reused."""
    tuned: bool = False
    """Whether it is compiled under the settings that cache-dit recommends."""


def all_contestants() -> list[Contestant]:
    """Every contestant that is installed."""
    return [*_plain(), *_own(), *_cache_dit(), *_diffusers()]


def chosen(names: Sequence[str], default: Sequence[str]) -> list[Contestant]:
    """Contestants by name, or all of a group by `GROUP-all`; ValueError for one that does not exist.

    A name that ends in `+tuned` is the contestant under the compile settings that cache-dit recommends.
    """
    found: dict[str, Contestant] = {}
    for name in names or default:
        found |= {each.name: each for each in _named(name)}
    return list(found.values())


def _named(name: str) -> list[Contestant]:
    known = {each.name: each for each in all_contestants()}
    for group in (each.group for each in known.values()):
        if name == f"{group}-all":
            return [each for each in known.values() if each.group == group]
    plain = name.removesuffix("+tuned")
    if plain not in known:
        groups = dict.fromkeys(f"{each.group}-all" for each in known.values())
        raise ValueError(f"--methods {name}: expected some of {', '.join([*known, *groups])}, a name also with +tuned")
    return [replace(known[plain], name=name, tuned=name != plain)]


def _plain() -> list[Contestant]:
    names = {"eager": "eager", "inductor": "compile", "inductor-blocks": "compile-blocks"}
    plain = [Contestant(name, "plain", partial(open_plain, way=way), False) for name, way in names.items()]
    return [*plain, Contestant("ideal", "plain", open_ideal, False)]


def _own() -> list[Contestant]:
    calibrators = {
        "": lambda: None,
        "-taylorseer1": lambda: fxcache.TaylorSeerCalibratorConfig(taylorseer_order=1),
        "-regression": fxcache.RegressionCalibratorConfig,
    }

    def entry(make: Callable[[], object]) -> Callable[[Stage], Entry]:
        return lambda stage: Fxcache(stage, make())

    return [Contestant(f"fxcache{ending}", "fxcache", entry(make)) for ending, make in calibrators.items()]


def _cache_dit() -> list[Contestant]:
    if find_spec("cache_dit") is None:
        return []
    from benchmarks.comparison.cachedit import CacheDit

    calibrators = {"": None, "-taylorseer1": ("TaylorSeerCalibratorConfig", {"taylorseer_order": 1})}
    return [
        Contestant(f"cache-dit{ending}{_suffix(way)}", "cache-dit", partial(CacheDit, way=way, calibrator=calibrator))
        for ending, calibrator in calibrators.items()
        for way in WAYS
    ]


def _diffusers() -> list[Contestant]:
    from benchmarks.comparison.hooked import FirstBlock, TaylorSeer

    kinds: dict[str, Callable[..., Entry]] = {
        "fbc": FirstBlock,
        "taylorseer": partial(TaylorSeer, lite=False),
        "taylorseer-lite": partial(TaylorSeer, lite=True),
    }
    return [
        Contestant(f"diffusers-{name}{_suffix(way)}", "diffusers", partial(kind, way=way))
        for name, kind in kinds.items()
        for way in WAYS
    ]


def _suffix(way: str) -> str:
    return "" if way == "eager" else f"-{way}"
