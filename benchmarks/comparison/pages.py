"""The tables of the pages about calibrators and policies, written from a comparison that looks at quality alone.

Where nothing is compiled times mean nothing, and every method can be tried: these tables count operations.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparison.contestants import LIMITED, OWN_CALIBRATORS
from benchmarks.comparison.fronts import Rows, best_at, front, measured, number_ticks
from benchmarks.peers import CALIBRATORS
from benchmarks.report import NOTHING, ROOT, markdown_table

PICTURE = "images/calibrators.png"
FACTORS = (1.5, 2.0, 3.0, 4.0, 5.0, 6.0)
"""How many times fewer operations a setting has to take."""
BASELINE = "fewer-steps"
FAMILIES: dict[str, list[str]] = {
    "fxcache, one block always runs": [f"fxcache{name}" for name in OWN_CALIBRATORS],
    "fxcache, none does": [f"fxcache-f0{name}" for name in LIMITED],
    "cache-dit, one does": [f"cache-dit{name}" for name in CALIBRATORS],
}
"""Methods that differ in their calibrator only."""
ALL_CALIBRATED = [BASELINE, *(name for family in FAMILIES.values() for name in family)]
POLICIES = [
    BASELINE, "fxcache-f0", "fxcache-interval", "fxcache-teacache", "fxcache-teacache-fitted", "fxcache-magcache",
    "fxcache-easycache",
]  # fmt: skip
PRUNING = ["fxcache", "fxcache-dbprune", "fxcache-dbprune-groups", "fxcache-dbprune-previous", "cache-dit-dbprune"]
CALIBRATED_PRUNING = [
    "fxcache-dbprune-taylorseer1", "fxcache-dbprune-taylorseer1-unlimited", "cache-dit-dbprune-taylorseer1",
]  # fmt: skip
Lines = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Table:
    """One table of a page."""

    page: str
    """Below `docs`."""
    name: str
    """Of the marks around it."""
    lines: Callable[[Rows], Lines]

    @property
    def marks(self) -> tuple[str, str]:
        """What stands before and after it."""
        return f"<!-- {self.name}: written by python -m benchmarks.compare --readme -->", f"<!-- end of {self.name} -->"


def by_work(methods: Sequence[str]) -> Callable[[Rows], Lines]:
    """A line per method: its best PSNR at so many times fewer operations; the best of a column in bold."""

    def lines(rows: Rows) -> Lines:
        found = [[best_at(_of(rows, method), factor, "work") for factor in FACTORS] for method in methods]
        best = [max((row["psnr_db"] for row in column if row), default=None) for column in zip(*found, strict=True)]
        cells = [[_decibels(row, most) for row, most in zip(line, best, strict=True)] for line in found]
        named = [(method, *line) for method, line in zip(methods, cells, strict=True)]
        return [("", *(f"{factor:g}x" for factor in FACTORS)), *named]

    return lines


def by_threshold(methods: Sequence[str]) -> Callable[[Rows], Lines]:
    """A line per threshold: PSNR of every method, and how many times fewer operations it took."""

    def lines(rows: Rows) -> Lines:
        settings = dict.fromkeys(row["setting"] for row in _of(rows, methods[0]) if row["family"] == "threshold")
        found = [(setting, *(_with_factor(_of(rows, method), setting) for method in methods)) for setting in settings]
        return [("", *methods), *found]

    return lines


TABLES = (
    Table("calibrators.md", "calibrators", by_work(ALL_CALIBRATED)),
    Table("policies/README.md", "policies", by_work(POLICIES)),
    Table("policies/dbprune.md", "pruning", by_threshold(PRUNING)),
    Table("policies/dbprune.md", "pruning with a calibrator", by_threshold(CALIBRATED_PRUNING)),
)


def section(table: Table, report: dict[str, Any], source: Path) -> str:
    """What a page says of a comparison, in Markdown."""
    columns, *lines = table.lines(report["rows"])
    measuring = f"`{command(report['case'])}` (`{os.path.relpath(source, ROOT)}`):"
    return f"\n{measuring}\n\n{markdown_table(columns, lines)}\n"


def command(case: dict[str, Any]) -> str:
    """What measures it again."""
    words = f"python -m benchmarks.compare --model {case['model']} --inner-backend {case['inner']}"
    words += f" --samples {case['samples']} --rounds {case['rounds']}"
    return words + " --in-process" * case["in_process"] + " --no-examine" * (not case["examine"])


def plot_calibrators(rows: Rows, path: Path) -> None:
    """Draw PSNR over saved operations: a part per family, the front of every calibrator as a line in it."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # no pyplot: it would open a window system and keep the figure
    figure = Figure(figsize=(15.0, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    colours = dict(zip(OWN_CALIBRATORS, colormaps["tab10"].colors, strict=False))
    handles: dict[str, Any] = {}
    for axes, (title, methods) in zip(
        figure.subplots(1, len(FAMILIES), sharex=True, sharey=True), FAMILIES.items(), strict=True
    ):
        shown = {name.removeprefix(methods[0]): _of(rows, name) for name in methods}
        for name, mine in {None: _of(rows, BASELINE), **shown}.items():
            # equal to the uncached pictures: nothing to see
            points = [(row["factor"], row["psnr_db"]) for row in front(mine, "work") if row["psnr_db"] < 99]
            if points:
                style = {"color": "black", "linestyle": "--"} if name is None else {"color": colours[name]}
                (line,) = axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.3, **style)
                handles.setdefault("fewer steps" if name is None else name.removeprefix("-") or "none", line)
        axes.set_title(title)
        axes.set_xscale("log")
        number_ticks(axes)
        axes.set_xlabel("times fewer operations")
        axes.set_ylabel("PSNR to uncached, dB")
        axes.tick_params(labelleft=True)
        axes.grid(color="0.9")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _of(rows: Rows, method: str) -> list[dict[str, Any]]:
    return [row for row in measured(rows) if row["method"] == method]


def _decibels(row: dict[str, Any] | None, most: float | None) -> str:
    if row is None:
        return NOTHING
    words = f"{row['psnr_db']:.1f}"
    return f"**{words}**" if row["psnr_db"] == most else words


def _with_factor(rows: Rows, setting: str) -> str:
    found = [row for row in rows if row["setting"] == setting]
    return f"{found[0]['psnr_db']:.1f} ({found[0]['factor']:.2f}x)" if found else NOTHING
