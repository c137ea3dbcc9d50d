"""The README's table and picture of the comparison, and the page with all methods, written from the JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparison.fronts import (
    GOOD_DB,
    OWN,
    SPEEDUPS,
    UNCACHED,
    best_at,
    best_of_groups,
    by_group,
    fastest_at,
    front,
    measured,
    median,
    plot_fronts,
)
from benchmarks.comparison.pages import PICTURE as CALIBRATORS_PICTURE
from benchmarks.comparison.pages import TABLES, plot_calibrators
from benchmarks.comparison.pages import section as table_section
from benchmarks.report import NOTHING, ROOT, markdown_table

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGE = DOCS / "comparison.md"
PICTURE = DOCS / "images" / "compare.png"
Marks = tuple[str, str]
"""Before and after a section that is written here."""
COMPARE: Marks = ("<!-- compare: written by python -m benchmarks.compare --readme -->", "<!-- end of compare -->")
BEST: Marks = ("<!-- best: written by python -m benchmarks.compare --best-of JSON --readme -->", "<!-- end of best -->")
IN_README = "digits"
"""The model whose comparison the README shows."""


@dataclass(frozen=True)
class Places:
    """The files that show a comparison."""

    readme: Path = README
    page: Path = PAGE
    picture: Path = PICTURE
    docs: Path = DOCS
    """With the pages of calibrators and policies."""


def write_readme(source: Path, places: Places | None = None) -> dict[str, Any]:
    """Put the sections of a JSON into the README and the page, and its plot beside; return the JSON's content.

    Where only the best settings were measured, few steps, or another model than the README's, the page alone has them;
    where nothing was compiled, the pages of calibrators and policies.
    ValueError where there is no JSON, no quality in it, or no place for a section.
    """
    if not source.exists():
        raise ValueError(f"--readme: expected {source}, which a comparison writes")
    places = places or Places()
    report: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    if not measured(report["rows"]):
        raise ValueError(f"--readme: expected a comparison of quality, found none in {source}")
    if of_methods(report["case"]):
        write_tables(report, source, places)
        return report
    marks = marks_of(report, source)
    if marks != COMPARE:
        places.page.write_text(replaced(places.page, page_section(report, source, places), marks), encoding="utf-8")
        return report
    written = {file: replaced(file, section) for file, section in sections(report, source, places).items()}
    places.picture.parent.mkdir(parents=True, exist_ok=True)
    # drawn anew: a comparison that was broken off has written its figures and no plot
    plot_fronts(report["rows"], places.picture, report["case"]["model"])
    for file, text in written.items():
        file.write_text(text, encoding="utf-8")
    return report


def of_methods(case: dict[str, Any]) -> bool:
    """Whether a comparison is one of quality alone: nothing was compiled, so its times mean nothing."""
    return case.get("inner", "inductor") != "inductor" and not (case["few_step"] or case.get("best_of"))


def write_tables(report: dict[str, Any], source: Path, places: Places) -> None:
    """Put the tables of a comparison that looks at quality alone into their pages, and its plot beside."""
    for table in TABLES:
        page = places.docs / table.page
        page.write_text(replaced(page, table_section(table, report, source), table.marks), encoding="utf-8")
    plot_calibrators(report["rows"], places.docs / CALIBRATORS_PICTURE)


def marks_of(report: dict[str, Any], source: Path) -> Marks:
    """Where the page has what this JSON gives."""
    case = report["case"]
    if case["model"] == IN_README and not case["few_step"]:
        return BEST if case.get("best_of") else COMPARE
    return f"<!-- {source.name}: written by python -m benchmarks.compare --readme -->", f"<!-- end of {source.name} -->"


def page_section(report: dict[str, Any], source: Path, places: Places) -> str:
    """What the page says of one JSON, in Markdown."""
    if report["case"].get("best_of"):
        return best_section(report, source, places)
    if report["case"]["few_step"]:
        return few_step_section(report, source, places)
    return sections(report, source, places)[places.page]


def sections(report: dict[str, Any], source: Path, places: Places) -> dict[Path, str]:
    """What every file says of a comparison, in Markdown: the README of the best methods, the page of all."""
    rows = report["rows"]
    methods = list(dict.fromkeys(row["method"] for row in measured(rows) if row["setting"] != UNCACHED))
    best = best_methods(rows)
    folder = places.readme.parent
    page, picture, name = (os.path.relpath(file, folder) for file in (places.page, places.picture, source))
    case = report["case"]
    words = (
        f"`python -m benchmarks.compare --model {case['model']}` on {_machine(report['machine'])}: {case['samples']} "
        f"pictures per setting, {case['steps']} steps\n(`{name}`). Every method "
        "is tried with every setting of its grid. The cells have its best PSNR to the uncached\npictures among the "
        "settings that are at least so many times as fast as plain Inductor, and the last but one column the\nspeedup "
        f"of its fastest setting with {GOOD_DB:g} dB."
    )
    some = (
        f" Here are those of {len(methods)} methods that are the best of their project in some\ncolumn, and fxcache "
        f"without a calibrator; [all of them]({page})."
    )
    refusals = {row["method"]: row["refusal"] for row in rows if row["refusal"] is not None}
    # some of them speak of code in `<...>`, which Markdown would swallow
    refused = [f"- `{method}`: `{reason}`\n" for method, reason in refusals.items()]
    shown = f"![PSNR over speedup and over saved operations, all methods]({picture})\n"
    short = [f"{words}{some}\n", _table(rows, [name for name in methods if name in best]), shown]
    full = [f"{words}\n", _table(rows, methods)]
    if refused:
        full.append(f"Refused by the method itself:\n\n{''.join(refused)}")
    return {file: "\n" + "\n".join(parts) + "\n" for file, parts in ((places.readme, short), (places.page, full))}


def best_section(report: dict[str, Any], source: Path, places: Places) -> str:
    """What the page says of the best settings, drawn in more pictures, in Markdown."""
    case, name = report["case"], os.path.relpath(source, places.readme.parent)
    words = (
        f"`python -m benchmarks.compare --model {case['model']} --best-of benchmarks/results/{case['best_of']} "
        f"--samples {case['samples']} --rounds {case['rounds']}`\n(`{name}`): whatever was the best of its project at "
        f"one of the speedups above,\nby time or by operations, in {case['samples']} pictures, of which the "
        f"{case['samples'] // case['rounds']} of a round are one batch. Work is how many times fewer operations\nit "
        "takes, `read` the share of pictures that the judge reads as what was asked for, and the last two columns have "
        "the\nFréchet distance in the judge's features to the uncached pictures and to real ones, of 1,000 or more."
    )
    columns = ("", "setting", "speedup", "work", "PSNR dB", "SSIM", "read", "to uncached", "to real")
    return f"\n{words}\n\n{markdown_table(columns, map(_best_line, measured(report['rows'])))}\n"


def few_step_section(report: dict[str, Any], source: Path, places: Places) -> str:
    """What the page says of a model of few steps, in Markdown: the front of every method."""
    case, name = report["case"], os.path.relpath(source, places.readme.parent)
    words = (
        f"`python -m benchmarks.compare --model {case['model']} --steps {case['steps']} --few-step --samples "
        f"{case['samples']} --rounds {case['rounds']}`\non {_machine(report['machine'])} (`{name}`): a quarter of the "
        "blocks at either end always runs, none of those named f0, measured and lite. Of every method the settings\n"
        "that no other one of it beats in both speed and PSNR to the uncached pictures; `read` is the share of "
        "pictures that the judge reads\nas what was asked for."
    )
    rows = measured(report["rows"])
    columns = ("", "setting", "speedup", "work", "PSNR dB", "read")
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        for row in front([row for row in rows if row["method"] == method]):
            read = f"{100 * row['accuracy']:.1f} %"
            speed = f"{median(row['speedup_to_inductor']):.2f}x"
            lines.append([method, row["setting"], speed, f"{row['factor']:.2f}x", _psnr(row), read])
    return f"\n{words}\n\n{markdown_table(columns, lines)}\n"


def _psnr(row: dict[str, Any]) -> str:
    return NOTHING if row["setting"] == UNCACHED else f"{row['psnr_db']:.1f}"


def _best_line(row: dict[str, Any]) -> tuple[str, ...]:
    far = [row[f"frechet_{name}"] for name in ("uncached", "real")]
    return (
        row["method"],
        row["setting"],
        f"{median(row['speedup_to_inductor']):.2f}x",
        f"{row['factor']:.2f}x",
        _psnr(row),
        f"{row['ssim']:.4f}",
        f"{100 * row['accuracy']:.1f} %",
        *(NOTHING if value is None else f"{value:.{digits}f}" for value, digits in zip(far, (3, 2), strict=True)),
    )


def best_methods(rows: Sequence[dict[str, Any]]) -> set[str]:
    """Who is the best of a project in some column of the table, and fxcache as it is without a calibrator."""
    best = [*best_of_groups(rows), *(fastest_at(group, GOOD_DB) for group in by_group(rows))]
    return {OWN, *(row["method"] for row in best if row is not None)}


def _line(rows: Sequence[dict[str, Any]], method: str) -> tuple[str, ...]:
    found = [best_at(rows, speedup) for speedup in SPEEDUPS]
    fastest = fastest_at(rows, GOOD_DB)
    return (
        method,
        *(NOTHING if row is None else f"{row['psnr_db']:.1f}" for row in found),
        NOTHING if fastest is None else f"{median(fastest['speedup_to_inductor']):.2f}x",
        str(max(row["graph_breaks"] or 0 for row in rows)),
    )


def _table(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> str:
    columns = ("", *(f"{speedup:g}x" for speedup in SPEEDUPS), f"at {GOOD_DB:g} dB", "graph breaks")
    found = [_line([row for row in rows if row["method"] == method], method) for method in methods]
    return markdown_table(columns, found)


def _machine(machine: dict[str, Any]) -> str:
    return str(machine.get("gpu") or f"{machine['cores']} cores, {machine['cpu']}")


def section_in(file: Path, marks: Marks = COMPARE) -> str:
    """What a file has between the marks; ValueError where they are not there once."""
    return _parts(file, marks)[1]


def replaced(file: Path, section: str, marks: Marks = COMPARE) -> str:
    """The text of a file with another section between the marks."""
    before, _, after = _parts(file, marks)
    begin, end = marks
    return f"{before}{begin}\n{section}{end}{after}"


def _parts(file: Path, marks: Marks) -> tuple[str, str, str]:
    text, (begin, end) = file.read_text(encoding="utf-8"), marks
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{file.name}: expected one {begin} and one {end}")
    before, _, rest = text.partition(begin)
    inside, _, after = rest.partition(end)
    return before, inside, after
