"""All contestants by name, in groups that `--methods` also takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import fxcache
from benchmarks.comparison.entries import (
    WAYS,
    Entry,
    Fxcache,
    Stage,
    open_ideal,
    open_plain,
    pruning_config,
)
from benchmarks.comparison.grids import (
    ERRORS,
    INTERVALS,
    THRESHOLDS,
    Grid,
    both,
    fewer_steps,
    knob,
    measured_masks,
    thresholds,
    without_first,
)
from benchmarks.comparison.published import Config, published
from benchmarks.peers import CALIBRATORS, INSTALL
from benchmarks.schedules import Schedule


@dataclass(frozen=True)
class Contestant:
    """A way to draw the same pictures."""

    name: str
    group: str
    """`plain`, `fxcache`, `cache-dit` or `diffusers`."""
    open: Callable[[Stage], Entry]
    grid: Grid | None = None
    """Its settings; None: it has none, and computes every step."""
    follows_masks: bool = True
    """Whether it can be made to compute the steps of a mask."""
    first_blocks: int | None = None
    """Blocks that run in every step, for a method that cannot be told."""
    skips_inside: bool = False
    """Whether it skips other things than whole blocks, so that its operations are counted while it runs."""
    tuned: bool = False
    """Whether it is compiled under the settings that cache-dit recommends."""

    def fit(self, schedule: Schedule) -> Schedule:
        """The schedule as this contestant runs it: without a cache every step is computed."""
        if self.grid is None:
            return Schedule("steps", schedule.steps, words=schedule.words)
        return schedule if self.first_blocks is None else replace(schedule, first_blocks=self.first_blocks)


def all_contestants() -> list[Contestant]:
    """Every contestant that is installed."""
    return [*_plain(), *_own(), *_cache_dit(), *_diffusers()]


def chosen(names: Sequence[str], default: Sequence[str]) -> list[Contestant]:
    """Contestants by name, or all of a group by `GROUP-all`; ValueError for one that does not exist.

    A name that ends in `+tuned` is the contestant under the compile settings that cache-dit recommends. Of `default`,
    what is not installed is left out.
    """
    found: dict[str, Contestant] = {}
    if not names and not _has_cache_dit():
        default = [name for name in default if not name.startswith("cache-dit")]
        print(INSTALL)
    for name in names or default:
        found |= {each.name: each for each in _named(name)}
    return list(found.values())


def _has_cache_dit() -> bool:
    return find_spec("cache_dit") is not None


def _named(name: str) -> list[Contestant]:
    known = {each.name: each for each in all_contestants()}
    for group in (each.group for each in known.values()):
        if name == f"{group}-all":
            return [each for each in known.values() if each.group == group]
    plain = name.removesuffix("+tuned")
    if plain.startswith("cache-dit") and not _has_cache_dit():
        raise ValueError(f"--methods {name}: expected that cache-dit is installed. {INSTALL}")
    if plain not in known:
        groups = dict.fromkeys(f"{each.group}-all" for each in known.values())
        raise ValueError(f"--methods {name}: expected some of {', '.join([*known, *groups])}, a name also with +tuned")
    return [replace(known[plain], name=name, tuned=name != plain)]


def _plain() -> list[Contestant]:
    names = {"eager": "eager", "inductor": "compile", "inductor-blocks": "compile-blocks"}
    plain = [Contestant(name, "plain", partial(open_plain, way=way)) for name, way in names.items()]
    fewer = Contestant("fewer-steps", "plain", partial(open_plain, way="compile"), fewer_steps, follows_masks=False)
    return [*plain, Contestant("ideal", "plain", open_ideal), fewer]


def _own() -> list[Contestant]:
    def entry(calibrator: tuple[str, dict[str, int]] | None, config: Config | None = None) -> Callable[[Stage], Entry]:
        return lambda stage: Fxcache(stage, calibrator and getattr(fxcache, calibrator[0])(**calibrator[1]), config)

    regression = ("RegressionCalibratorConfig", {})
    calibrators = {**CALIBRATORS, "-regression": regression}
    found = [Contestant(f"fxcache{name}", "fxcache", entry(each), both) for name, each in calibrators.items()]
    found += [
        Contestant(f"fxcache-f0{name}", "fxcache", entry(each), without_first(both))
        for name, each in calibrators.items()
        if name in ("", "-taylorseer1", "-taylorseer2", "-regression")
    ]
    found += [
        Contestant(
            f"fxcache-measured{name}",
            "fxcache",
            entry(calibrators[name], published("measured")),
            measured_masks,
            follows_masks=False,
            first_blocks=0,
        )
        for name in ("-taylorseer1", "-taylorseer2", "-regression")
    ]
    found += [
        Contestant(f"fxcache-dbprune{name}", "fxcache", entry(CALIBRATORS[name], pruning_config), thresholds, False)
        for name in ("", "-taylorseer1")
    ]
    others = {"interval": knob(INTERVALS, "every"), "magcache": knob(ERRORS, "error")}
    others |= dict.fromkeys(("teacache", "easycache"), knob(THRESHOLDS, "threshold"))
    for name, grid in others.items():
        found.append(
            Contestant(f"fxcache-{name}", "fxcache", entry(None, published(name)), grid, False, first_blocks=0)
        )
    return found


def _cache_dit() -> list[Contestant]:
    if not _has_cache_dit():
        return []
    from benchmarks.comparison.cachedit import CacheDit

    cached = [
        Contestant(
            f"cache-dit{ending}{_suffix(way)}", "cache-dit", partial(CacheDit, way=way, calibrator=calibrator), both
        )
        for ending, calibrator in CALIBRATORS.items()
        for way in WAYS
    ]
    pruned = [
        Contestant(
            f"cache-dit-dbprune{ending}{_suffix(way)}",
            "cache-dit",
            partial(CacheDit, way=way, calibrator=CALIBRATORS[ending], prunes=True),
            thresholds,
            follows_masks=False,
        )
        for ending in ("", "-taylorseer1")
        for way in WAYS
    ]
    return [*cached, *pruned]


def _diffusers() -> list[Contestant]:
    from benchmarks.comparison.hooked import Faster, FirstBlock, MagCache, Pyramid, Sea, TaylorSeer

    intervals = knob(INTERVALS, "every")
    thresholds = knob(THRESHOLDS, "threshold")

    def contestant(name: str, kind: Callable[..., Entry], grid: Grid, **traits: Any) -> list[Contestant]:
        return [
            Contestant(f"diffusers-{name}{_suffix(way)}", "diffusers", partial(kind, way=way), grid, **traits)
            for way in WAYS
        ]

    return [
        *contestant("fbc", FirstBlock, thresholds, first_blocks=1),
        *contestant("taylorseer", partial(TaylorSeer, lite=False), intervals, skips_inside=True),
        *contestant("taylorseer-lite", partial(TaylorSeer, lite=True), intervals, first_blocks=0, skips_inside=True),
        *contestant("magcache", MagCache, knob(ERRORS, "error"), first_blocks=0, follows_masks=False),
        *contestant("pab", Pyramid, intervals, skips_inside=True, follows_masks=False),
        *contestant("fastercache", Faster, intervals, skips_inside=True, follows_masks=False),
        *contestant("seacache", Sea, thresholds, first_blocks=0, follows_masks=False),
    ]


def _suffix(way: str) -> str:
    return "" if way == "eager" else f"-{way}"
