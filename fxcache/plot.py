"""Draw a summary with matplotlib, which only this file needs."""

from __future__ import annotations

import math
from os import PathLike
from typing import TYPE_CHECKING, Any

from fxcache.errors import StateError
from fxcache.runtime.interface import Reason

if TYPE_CHECKING:
    from fxcache.summary import ContextSummary, Summary

_MOST = 12
"""Contexts in one picture; the last ones are drawn."""


def plot_summary(summary: Summary, path: str | PathLike[str]) -> None:
    """Draw the differences of every context against the threshold, with the decisions, into `path`.

    Raises StateError when matplotlib is missing or nothing has been cached yet.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise StateError("Summary.plot needs matplotlib: pip install matplotlib") from error
    contexts = [context for context in summary.contexts if context.outcomes][-_MOST:]
    if not contexts:
        raise StateError("Summary.plot: no cached calls yet, so there is nothing to draw")
    # no pyplot: it would open a window system and keep the figure
    figure = Figure(figsize=(9.0, 2.4 * len(contexts) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, context in zip(figure.subplots(len(contexts), 1, squeeze=False)[:, 0], contexts, strict=True):
        _draw(axes, context)
    figure.savefig(path, dpi=120)


def _draw(axes: Any, context: ContextSummary) -> None:
    steps = range(len(context.outcomes))
    reused = [outcome == Reason.REUSED.value for outcome in context.outcomes]
    known = [_finite(difference) for difference in context.differences]
    line = [(step, value) for step, value in zip(steps, known, strict=True) if value is not None]
    axes.plot([step for step, _ in line], [value for _, value in line], color="0.8", linewidth=1, zorder=1)
    for wanted, colour, mark, label in ((True, "tab:green", "o", "reused"), (False, "tab:red", "x", "computed")):
        points = [(step, known[step] or 0.0) for step in steps if reused[step] is wanted]
        if points:
            axes.scatter(*zip(*points, strict=True), c=colour, marker=mark, label=label, zorder=3, clip_on=False)
    if context.threshold < 1:
        axes.axhline(context.threshold, color="tab:blue", linestyle="--", linewidth=1, label="threshold")
    for step in steps:
        if not reused[step]:
            axes.axvspan(step - 0.5, step + 0.5, color="tab:red", alpha=0.06, linewidth=0)
    axes.set_xlim(-0.5, len(reused) - 0.5)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("step")
    axes.set_ylabel("difference")
    axes.set_title(
        f"{context.model}, {context.generation}, {context.branch}: {context.reused} of {context.steps} steps reused",
        fontsize="medium",
    )
    axes.legend(loc="upper left", fontsize="small")


def _finite(difference: float | None) -> float | None:
    return difference if difference is not None and math.isfinite(difference) else None
