"""The tables of `benchmarks.compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.comparison.fixed import Competitor
from benchmarks.report import NOTHING, Spread, size, table
from benchmarks.schedules import Schedule


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


def sweep_lines(rows: Sequence[dict[str, Any]]) -> str:
    """The table of rows with quality beside speed."""
    columns = (
        "", "setting", "s / image", "to inductor", "to eager", "GFLOPs", "work", "reused", "PSNR dB", "SSIM", "read",
        "FD uncached", "compile s", "peak", "state", "breaks", "recompiles", "syncs",
    )  # fmt: skip
    lines = [table(columns, [_sweep_cells(row) for row in rows])]
    lines += [f"{row['method']}, {row['setting']}: {row['refusal']}" for row in rows if row["refusal"] is not None]
    return "\n" + "\n".join(lines) + "\n"


def _sweep_cells(row: dict[str, Any]) -> tuple[str, ...]:
    if row.get("psnr_db") is None:
        return (row["method"], row["setting"], *[NOTHING] * 16)
    far = row.get("frechet_uncached")
    return (
        row["method"],
        row["setting"],
        f"{row['image_s'].median:.4f}",
        *(_times(row[f"speedup_to_{base}"]) for base in ("inductor", "eager")),
        f"{row['flops'] / 1e9:.4g}",
        f"{row['factor']:.2f}x",
        f"{100 * row['reused_share']:.0f} %",
        f"{row['psnr_db']:.1f}",
        f"{row['ssim']:.4f}",
        f"{100 * row['accuracy']:.1f} %",
        NOTHING if far is None else f"{far:.3f}",
        f"{row['compile_s']:.1f}",
        size(row["peak_bytes"]),
        size(row["state_bytes"]),
        str(row["graph_breaks"]),
        str(row["recompiles"]),
        NOTHING if row["host_syncs"] is None else f"{row['host_syncs']:.0f}",
    )


def summary_lines(summary: dict[str, Any]) -> str:
    """What the fronts say at the speedups of the goals."""
    rows = [(f"at least {at['speedup']:g}x", at["own"], at["others"]) for at in summary["at_speedup"]]
    rows.append((f"fastest at {summary['psnr_db']:g} dB", summary["fastest"]["own"], summary["fastest"]["others"]))
    return table(("", "fxcache", "best of all others"), [(name, *map(_brief_cell, both)) for name, *both in rows])


def _brief_cell(brief: dict[str, Any] | None) -> str:
    if brief is None:
        return NOTHING
    name = f"{brief['method']}, {brief['setting']}"
    return f"{name}: {brief['speedup']:.2f}x, {brief['psnr_db']:.1f} dB, {100 * brief['accuracy']:.1f} %"
