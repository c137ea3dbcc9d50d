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
from benchmarks.peers import CALIBRATORS, INSTALL, Calibrator
from benchmarks.schedules import Schedule

_UNLIMITED = {"calibrator_max_gain": None}
OWN_CALIBRATORS: dict[str, Calibrator | None] = {
    **CALIBRATORS,
    "-taylorseer3": ("TaylorSeerCalibratorConfig", {"taylorseer_order": 3}),
    "-regression": ("RegressionCalibratorConfig", {}),
    "-taylorseer1-unlimited": ("TaylorSeerCalibratorConfig", {"taylorseer_order": 1, **_UNLIMITED}),
    "-taylorseer2-unlimited": ("TaylorSeerCalibratorConfig", {"taylorseer_order": 2, **_UNLIMITED}),
    "-foca-unlimited": ("FoCaCalibratorConfig", _UNLIMITED),
}
"""The same for fxcache, which limits how far a forecast reaches unless told otherwise."""
LIMITED = [name for name in OWN_CALIBRATORS if not name.endswith("-unlimited")]
PRUNING: dict[str, tuple[str, dict[str, Any]]] = {
    "": ("", {}),
    "-groups": ("", {"prune_group": 4}),
    "-previous": ("", {"prune_indicator": "previous"}),
    "-taylorseer1": ("-taylorseer1", {}),
    "-taylorseer1-unlimited": ("-taylorseer1-unlimited", {}),
}
"""What the name of a method that prunes blocks ends in, its calibrator and its knobs."""


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
    def entry(calibrator: str, config: Config | None = None) -> Callable[[Stage], Entry]:
        made = OWN_CALIBRATORS[calibrator]
        return lambda stage: Fxcache(stage, made and getattr(fxcache, made[0])(**made[1]), config)

    def contestant(name: str, opened: Callable[[Stage], Entry], grid: Grid, **traits: Any) -> Contestant:
        return Contestant(f"fxcache{name}", "fxcache", opened, grid, **traits)

    found = [contestant(name, entry(name), both) for name in OWN_CALIBRATORS]
    found += [contestant(f"-f0{name}", entry(name), without_first(both)) for name in LIMITED]
    alone = {"follows_masks": False, "first_blocks": 0}
    found += [
        contestant(f"-measured{name}", entry(name, published("measured")), measured_masks, **alone)
        for name in ("-taylorseer1", "-taylorseer2", "-regression")
    ]
    found += [
        contestant(
            f"-dbprune{name}", entry(calibrator, partial(pruning_config, **knobs)), thresholds, follows_masks=False
        )
        for name, (calibrator, knobs) in PRUNING.items()
    ]
    others = {"interval": knob(INTERVALS, "every"), "magcache": knob(ERRORS, "error")}
    others |= dict.fromkeys(("teacache", "teacache-fitted", "easycache"), knob(THRESHOLDS, "threshold"))
    found += [contestant(f"-{name}", entry("", published(name)), grid, **alone) for name, grid in others.items()]
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
