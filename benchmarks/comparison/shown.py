"""The tables of `benchmarks.compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.comparison.fixed import Competitor
from benchmarks.report import Spread, size, table
from benchmarks.schedules import Schedule

NOTHING = "-"


def show_prepared(competitor: Competitor) -> str:
    """One line: what compiling a contestant took, or why it takes no part."""
    if competitor.refusal is not None:
        return f"{competitor.name}: refused, {competitor.refusal}"
    assert competitor.prepared is not None
    made = competitor.prepared.compiled
    return (
        f"{competitor.name}: compiled in {competitor.prepared.compile_s:.1f} s, {made.graphs} graphs, "
        f"{made.graph_breaks} breaks, {made.recompiles} recompilations"
    )


def fixed_lines(rows: Sequence[dict[str, Any]], schedule: Schedule) -> str:
    """The table of one mask."""
    columns = (
        f"{schedule.mask}", "wall s", "20 %", "80 %", "to inductor", "to eager", "computed ms", "reused ms",
        "to ideal", "idle", "syncs", "GFLOPs", "peak", "state", "breaks", "recompiles",
    )  # fmt: skip
    return "\n" + table(columns, map(_fixed_cells, rows)) + "\n"


def _fixed_cells(row: dict[str, Any]) -> tuple[str, ...]:
    if row["refusal"] is not None or "wall_s" not in row:
        return (row["method"], *[NOTHING] * 15)
    wall: Spread = row["wall_s"]
    on_gpu = row["reused_step_on_gpu"]
    return (
        row["method"],
        *(f"{value:.3f}" for value in (wall.median, wall.q20, wall.q80)),
        *(_times(row[f"speedup_to_{base}"]) for base in ("inductor", "eager")),
        *(_number(row[f"{kind}_step_ms"]) for kind in ("computed", "reused")),
        f"{row['reused_to_ideal']:.2f}x" if "reused_to_ideal" in row else NOTHING,
        f"{100 * row['reused_step_idle']:.0f} %" if "reused_step_idle" in row else NOTHING,
        f"{on_gpu['host_syncs']:.0f}" if on_gpu else NOTHING,
        f"{row['flops'] / 1e9:.4g}" if "flops" in row else NOTHING,
        size(row["peak_bytes"]),
        size(row["state_bytes"]),
        str(row["graph_breaks"]),
        str(row["recompiles"]),
    )


def _times(spread: Spread | None) -> str:
    return NOTHING if spread is None else f"{spread.median:.2f}x"


def _number(spread: Spread | None) -> str:
    return NOTHING if spread is None else f"{spread.median:.2f}"
