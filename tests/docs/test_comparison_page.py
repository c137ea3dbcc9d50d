"""The page of the comparison says what its JSON says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.docs.pages import DOCS, tables

RESULTS = DOCS.parent / "benchmarks" / "results"
COLUMNS = {"computed_step_ms": ("computed step ms", 1), "reused_step_ms": ("reused step ms", 2)}


def shown(row: dict[str, Any]) -> list[str]:
    times = ["-" if row[name] is None else f"{row[name]['median']:.{digits}f}" for name, (_, digits) in COLUMNS.items()]
    speed = f"{row['speedup_to_inductor']['median']:.2f}x"
    return [
        str(row["computed_steps"]), row["method"], f"{row['wall_s']['median']:.3f}", speed, *times,
        str(row["graph_breaks"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "first", "lines"),
    [("flux1-dev-random-cuda", "computed steps of 28", 17), ("digits-schedules-cpu", "computed calls of 100", 13)],
)
def test_the_table_is_that_of_the_json(name: str, first: str, lines: int) -> None:
    source = RESULTS / f"compare-{name}.json"
    measured = [shown(row) for row in json.loads(source.read_text(encoding="utf-8"))["rows"]]
    (table,) = tables((DOCS / "comparison.md").read_text(encoding="utf-8"), first)
    assert len(table) == lines
    assert [line for line in table if line not in measured] == []
