"""What a comparison takes over from the JSON of an earlier one: the settings to measure again, or rows as they are."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparison.fronts import SPEEDS, best_of_groups
from benchmarks.comparison.models import MODELS
from benchmarks.comparison.sweep import Row, schedule_of
from benchmarks.report import other_version

ASKED = ("samples", "rounds", "steps", "few_step", "inner", "device")
"""What a comparison and one that it is added to have in common, by the names of the JSON's case."""


@dataclass(frozen=True)
class Added:
    """A report that goes on."""

    head: dict[str, Any]
    kept: list[dict[str, Any]]
    """Rows that stay as they are."""
    rows: list[Row]
    """What is not measured yet."""


def best_rows(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of an earlier report that are measured again; ValueError for one of another comparison."""
    earlier = _read("--best-of", given.best_of)
    case = {"model": given.model, "steps": given.steps or MODELS[given.model].steps}
    for name, value in case.items():
        if earlier["case"][name] != value:
            raise ValueError(f"--{name} {value}: expected {earlier['case'][name]}, that of {given.best_of}")
    # by work too: what is just fast enough in one run may not be in the next
    found = best_of_groups(earlier["rows"], tuple(SPEEDS))
    if not found:
        raise ValueError(f"--best-of {given.best_of}: expected rows that are faster than plain Inductor")
    return found


def added_to(path: Path, head: dict[str, Any], wanted: Sequence[Row]) -> Added:
    """What is left to measure beside the earlier report at `path`.

    Every speedup is a ratio to the uncached model in the same round, so rows of two runs can stand beside each other
    where machine, versions and case are the same; ValueError where they are not. Of the methods that are wanted, what
    the report has with settings of no grid is left out.
    """
    earlier = _read("--add", path)
    case, other = head["case"], earlier["case"]
    differ = [name for name in ("model", *ASKED) if case[name] != other[name]]
    if differ:
        raise ValueError(f"--add, {differ[0]} {case[differ[0]]}: expected {other[differ[0]]}, that of {path}")
    theirs, mine = earlier["versions"], head["versions"]
    if name := other_version(theirs, mine):
        raise ValueError(f"--add: expected {name} {theirs[name]} as in {path}, found {mine[name]}")
    if earlier["machine"] != head["machine"]:
        raise ValueError(f"--add: expected the machine of {path}, {earlier['machine']}, found {head['machine']}")
    commits = [*earlier.get("commits", [earlier["commit"]]), head["commit"]]
    keys = {(row.contestant.name, row.schedule): row for row in wanted}
    methods = {row.contestant.name for row in wanted}
    found = {(row["method"], schedule_of(row)): row for row in earlier["rows"]}
    kept = [row for key, row in found.items() if key in keys or row["method"] not in methods]
    rows = [row for key, row in keys.items() if key not in found]
    return Added({**head, "versions": {**theirs, **mine}, "commits": commits}, kept, rows)


def _read(option: str, path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"{option} {path}: expected the JSON of a comparison")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
