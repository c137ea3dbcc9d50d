"""Fronts of quality over speed: what no other setting of a method beats, and what the goals are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Spread

Rows = Sequence[dict[str, Any]]
Point = tuple[float, float]
"""Speedup to plain Inductor, and PSNR."""
SPEEDUPS = (2.0, 3.0, 4.0, 6.0)
"""At which fronts are compared."""
GOOD_DB = 30.0
"""Pictures of this PSNR to the uncached ones are hard to tell from them."""
OWN = "fxcache"
UNCACHED = "all steps"
"""The setting of a model without a cache that takes no step less."""
SPEEDS: dict[str, tuple[str, Callable[[dict[str, Any]], float]]] = {
    "time": ("times faster than plain Inductor", lambda row: median(row["speedup_to_inductor"])),
    "work": ("times fewer operations", lambda row: row["factor"]),
}
"""How much faster a row is, by what is counted: its words, and its value."""
COLOURS = {"fxcache": "tab:red", "cache-dit": "tab:blue", "diffusers": "tab:green", "plain": "black"}


def median(value: Any) -> float:
    """The middle of a spread, also of one that was read from a file."""
    return float(value.median if isinstance(value, Spread) else value["median"])


def measured(rows: Rows) -> list[dict[str, Any]]:
    """The rows that have a quality."""
    return [row for row in rows if row.get("psnr_db") is not None]


def front(rows: Rows, speed: str = "time") -> list[dict[str, Any]]:
    """The rows that no other one beats in both speed, by a name of `SPEEDS`, and PSNR; the slowest first."""
    _, of = SPEEDS[speed]
    ordered = sorted(measured(rows), key=lambda row: (of(row), row["psnr_db"]))
    return [
        row for i, row in enumerate(ordered) if all(other["psnr_db"] < row["psnr_db"] for other in ordered[i + 1 :])
    ]


def best_at(rows: Rows, speedup: float, speed: str = "time") -> dict[str, Any] | None:
    """The row with the best PSNR among those that are at least so fast, by a name of `SPEEDS`."""
    _, of = SPEEDS[speed]
    fast = [row for row in measured(rows) if of(row) >= speedup]
    return max(fast, key=lambda row: row["psnr_db"], default=None)


def fastest_at(rows: Rows, psnr_db: float) -> dict[str, Any] | None:
    """The fastest row among those of at least this PSNR."""
    good = [row for row in measured(rows) if row["psnr_db"] >= psnr_db]
    return max(good, key=lambda row: median(row["speedup_to_inductor"]), default=None)


def by_group(rows: Rows) -> list[list[dict[str, Any]]]:
    """What was measured of every project, and of fewer steps, without the uncached models."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in measured(rows):
        if row["setting"] != UNCACHED:
            groups.setdefault(row["group"], []).append(row)
    return list(groups.values())


def best_of_groups(rows: Rows, speeds: Sequence[str] = ("time",)) -> list[dict[str, Any]]:
    """The best row of every project at each speedup of the goals, and of fewer steps; each row once, by PSNR."""
    best = [best_at(group, speedup, speed) for group in by_group(rows) for speedup in SPEEDUPS for speed in speeds]
    found = {id(row): row for row in best if row is not None}
    return sorted(found.values(), key=lambda row: -row["psnr_db"])


def summary_of(rows: Rows) -> dict[str, Any]:
    """At each speedup the best of this project and of all others, and who is fastest at a good PSNR."""
    own = [row for row in rows if row["group"] == OWN]
    others = [row for row in rows if row["group"] != OWN]
    at = []
    for speedup in SPEEDUPS:
        pair = {"own": best_at(own, speedup), "others": best_at(others, speedup)}
        at.append({"speedup": speedup, **{side: row and _brief(row) for side, row in pair.items()}})
    fastest = {"own": fastest_at(own, GOOD_DB), "others": fastest_at(others, GOOD_DB)}
    return {
        "at_speedup": at,
        "psnr_db": GOOD_DB,
        "fastest": {side: row and _brief(row) for side, row in fastest.items()},
    }


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    names = ("method", "setting", "psnr_db", "accuracy")
    return {**{name: row[name] for name in names}, "speedup": median(row["speedup_to_inductor"])}


def plot_fronts(rows: Rows, path: Path, name: str) -> None:
    """Draw PSNR over speedup and over saved operations: all settings as dots, the front of every project as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # no pyplot: it would open a window system and keep the figure
    figure = Figure(figsize=(12.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    # equal to the uncached pictures, or uncached: nothing to see
    shown = [row for row in measured(rows) if row["psnr_db"] < 99]
    for axes, (speed, (label, _)) in zip(figure.subplots(1, 2, sharey=True), SPEEDS.items(), strict=True):
        for group, colour in COLOURS.items():
            mine = [row for row in shown if row["group"] == group]
            if mine:
                _draw(axes, mine, speed, colour, "fewer steps" if group == "plain" else group)
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.grid(color="0.9", which="both")
        axes.set_ylabel("PSNR to uncached, dB")
        number_ticks(axes)
    figure.suptitle(name)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles) or 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw(axes: Any, rows: Rows, speed: str, colour: str, label: str) -> None:
    _, of = SPEEDS[speed]
    points, best = ([(of(row), row["psnr_db"]) for row in some] for some in (rows, front(rows, speed)))
    axes.scatter(*zip(*points, strict=True), s=8, color=colour, alpha=0.35)
    axes.plot(*zip(*best, strict=True), color=colour, marker="o", markersize=3.5, linewidth=1.4, label=label)


def number_ticks(axes: Any) -> None:
    """Write plain numbers along a logarithmic axis of how much faster something is."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.xaxis.set_major_locator(FixedLocator([0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
