"""The picture of `benchmarks.calibrators`: PSNR over the factor of saved block executions, one line per method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[dict[str, Any]]

PANELS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "fxcache, spread masks, F1": lambda row: _is(row, "fxcache", family="mask", first_blocks=1),
    "fxcache, thresholds, residual": lambda row: _is(row, "fxcache", family="threshold", indicator="residual"),
    "fxcache, spread masks, F0": lambda row: _is(row, "fxcache", family="mask", first_blocks=0),
    "cache-dit, spread masks, F1": lambda row: _is(row, "cache-dit", family="mask"),
    "cache-dit, thresholds, residual": lambda row: _is(row, "cache-dit", family="threshold"),
    "fxcache, thresholds, forecast": lambda row: _is(row, "fxcache", family="threshold", indicator="forecast"),
    "fxcache, published methods, F0": lambda row: _is(row, "fxcache", family="published"),
}
"""Title and rows of each part of the picture; those without rows are left out."""
COLOURS = {
    "": "tab:gray",
    "taylorseer1": "tab:blue",
    "taylorseer2": "tab:cyan",
    "taylorseer3": "tab:purple",
    "taylorseer1-unlimited": "tab:olive",
    "taylorseer2-unlimited": "tab:pink",
    "foca-unlimited": "tab:brown",
    "foca": "tab:orange",
    "dmd": "tab:green",
    "regression": "tab:red",
    "interval": "tab:olive",
    "teacache": "tab:pink",
    "teacache-fitted": "tab:brown",
    "magcache": "tab:blue",
    "easycache": "tab:orange",
}
"""By calibrator: the same one has the same colour in every part."""
REUSE = "none: reuse as it is"


def plot_curves(rows: Rows, path: Path) -> None:
    """Draw the rows of the report into `path`; in a part with several schedules per factor the best ones are joined."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {title: [row for row in rows if belongs(row)] for title, belongs in PANELS.items()}
    panels = {title: found for title, found in panels.items() if found} or {"no cache": []}
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    # no pyplot: it would open a window system and keep the figure
    figure = Figure(figsize=(max(5.0 * columns, 8.0), 3.8 * lines + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    handles: dict[str, Any] = {}
    for axes, (title, found) in zip(grid.flat, panels.items(), strict=False):
        axes.set_title(title, fontsize="medium")
        for name, handle in _draw(axes, found, [row for row in rows if row["family"] == "steps"]).items():
            handles.setdefault(name, handle)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    _label(figure, grid, max((row["factor"] for row in rows), default=1.0))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(6, len(handles)), fontsize="medium"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def best(rows: Rows) -> list[dict[str, Any]]:
    """The rows that no other one beats in both factor and PSNR, by factor."""
    ordered = sorted(rows, key=lambda row: (row["factor"], row["psnr_db"]))
    return [
        row for i, row in enumerate(ordered) if all(other["psnr_db"] < row["psnr_db"] for other in ordered[i + 1 :])
    ]


def _is(row: dict[str, Any], source: str, **wanted: Any) -> bool:
    return _split(row["method"])[0] == source and all(row[key] == value for key, value in wanted.items())


def _split(method: str) -> tuple[str, str]:
    """Source and calibrator of a method, such as `cache-dit` and `foca`."""
    for source in ("cache-dit", "fxcache"):
        if method.startswith(source):
            return source, method.removeprefix(source).removeprefix("-")
    return method, ""


def _draw(axes: Any, rows: Rows, fewer: Rows) -> dict[str, Any]:
    handles = {}
    points = sorted((row["factor"], row["psnr_db"]) for row in fewer if row["factor"] > 1)
    if points:
        style = {"color": "black", "linestyle": "--", "linewidth": 1.6, "zorder": 4}
        (handles["fewer steps"],) = axes.plot(*zip(*points, strict=True), **style)
    for calibrator, colour in COLOURS.items():
        mine = [row for row in rows if _split(row["method"])[1] == calibrator]
        if not mine:
            continue
        line = best(mine)
        style = {"color": colour, "marker": "o", "markersize": 3.5, "linewidth": 1.4}
        (handle,) = axes.plot([row["factor"] for row in line], [row["psnr_db"] for row in line], **style)
        axes.scatter([row["factor"] for row in mine], [row["psnr_db"] for row in mine], s=6, color=colour, alpha=0.4)
        handles[calibrator or REUSE] = handle
    return handles


def _label(figure: Any, grid: Any, most: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis = grid[0, 0]
    axis.set_xscale("log")
    axis.set_xlim(1.0, max(most, 2.0) * 1.05)
    for axes in grid.flat:
        axes.xaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.tick_params(labelbottom=True, labelleft=True)
        axes.grid(color="0.9")
    # not a label of the figure: the legend would cover it
    for axes in grid[-1]:
        axes.set_xlabel("times fewer block executions")
    for axes in grid[:, 0]:
        axes.set_ylabel("PSNR to uncached, dB")
