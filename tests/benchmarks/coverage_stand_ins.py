"""Examinations in place of the real ones, for processes that are lost on the way: `python coverage_stand_ins.py`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def examine(name: str, inner: str) -> dict[str, Any]:
    """What becomes of a class is in its name."""
    if name == "Lost":
        os._exit(7)
    if name == "Stuck":
        time.sleep(60)
    return {"ok": True, "name": name, "inner": inner, "process": os.getpid()}


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    sys.path.insert(0, str(root))
    from benchmarks.coverage import run_all
    from tests.benchmarks import coverage_stand_ins

    rows: list[dict[str, Any]] = []
    found = run_all(
        ["First", "Lost", "Second", "Stuck", "Third"],
        ["eager", "inductor"],
        jobs=1,
        examine=coverage_stand_ins.examine,
        timeout_s=20,
        keep=lambda found: rows.append({inner: sorted(rows) for inner, rows in found.items()}),
    )
    print(json.dumps({"found": found, "kept": rows}))
