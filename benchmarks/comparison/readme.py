"""The README's table and picture of the comparison, written from its JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison.fronts import GOOD_DB, SPEEDUPS, best_at, fastest_at, measured, median, plot_fronts
from benchmarks.report import ROOT

README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "compare.png"
BEGIN, END = "<!-- compare: written by python -m benchmarks.compare --readme -->", "<!-- end of compare -->"
NOTHING = "-"


def write_readme(source: Path, readme: Path = README, picture: Path = PICTURE) -> dict[str, Any]:
    """Put the section of a JSON into the README, and its plot beside; return the JSON's content.

    ValueError where there is no JSON, or no place for the section.
    """
    if not source.exists():
        raise ValueError(f"--readme: expected {source}, which a comparison writes")
    report: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    picture.parent.mkdir(parents=True, exist_ok=True)
    # drawn anew: a comparison that was broken off has written its figures and no plot
    plot_fronts(report["rows"], picture, report["case"]["model"])
    before, _, after = _parts(readme.read_text(encoding="utf-8"))
    shown = os.path.relpath(picture, readme.parent)
    name = os.path.relpath(source, readme.parent)
    readme.write_text(f"{before}{BEGIN}\n{section(report, name, shown)}{END}{after}", encoding="utf-8")
    return report


def section_in(text: str) -> str:
    """What a README has between the marks."""
    return _parts(text)[1]


def section(report: dict[str, Any], source: str, picture: str) -> str:
    """The words, the table and the picture of a comparison, in Markdown."""
    case, rows = report["case"], report["rows"]
    command = f"python -m benchmarks.compare --model {case['model']}"
    words = (
        f"`{command}` on {_machine(report['machine'])}: {case['samples']} pictures per setting, {case['steps']} steps "
        f"(`{source}`).\nEvery method is tried with every setting of its grid. The cells have its best PSNR to the "
        "uncached pictures among the settings that are at least so many times\nas fast as plain Inductor, and the "
        f"last but one column the speedup of its fastest setting with {GOOD_DB:g} dB.\n"
    )
    columns = ("", *(f"{speedup:g}x" for speedup in SPEEDUPS), f"at {GOOD_DB:g} dB", "graph breaks")
    methods = dict.fromkeys(row["method"] for row in measured(rows) if row["setting"] != "all steps")
    lines = [_line([row for row in rows if row["method"] == method], method) for method in methods]
    refusals = {row["method"]: row["refusal"] for row in rows if row["refusal"] is not None}
    parts = [words, _table(columns, lines)]
    if refusals:
        # some of them speak of code in `<...>`, which Markdown would swallow
        refused = "\n".join(f"- `{method}`: `{reason}`" for method, reason in refusals.items())
        parts.append(f"Refused by the method itself:\n\n{refused}\n")
    parts.append(f"![PSNR over speedup and over saved operations, all methods]({picture})\n")
    return "\n" + "\n".join(parts) + "\n"


def _line(rows: Sequence[dict[str, Any]], method: str) -> tuple[str, ...]:
    found = [best_at(rows, speedup) for speedup in SPEEDUPS]
    fastest = fastest_at(rows, GOOD_DB)
    return (
        method,
        *(NOTHING if row is None else f"{row['psnr_db']:.1f}" for row in found),
        NOTHING if fastest is None else f"{median(fastest['speedup_to_inductor']):.2f}x",
        str(max(row["graph_breaks"] or 0 for row in rows)),
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _machine(machine: dict[str, Any]) -> str:
    return str(machine.get("gpu") or f"{machine['cores']} cores, {machine['cpu']}")


def _parts(text: str) -> tuple[str, str, str]:
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README.md: expected one {BEGIN} and one {END}")
    before, _, rest = text.partition(BEGIN)
    inside, _, after = rest.partition(END)
    return before, inside, after
