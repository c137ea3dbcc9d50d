"""The results of `benchmarks.coverage` as a table in the terminal and as a page of the documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from benchmarks.report import ROOT

PAGE = ROOT / "docs" / "coverage.md"
SPLITS = {"F1B0": (1, 0), "F1B1": (1, 1), "F2B1": (2, 1)}
"""Fn and Bn; with four blocks per stack the last one leaves a middle of one block."""
Rows = Mapping[str, Mapping[str, Any]]
COLUMNS = ("class", "trunk", "blocks", "streams", "outcome", "s")

INTRODUCTION = """
Written by `python -m benchmarks.coverage`; do not edit. Every transformer class that diffusers exports, as a tiny model
with random weights in float32 on the CPU. `fxcache.enable_cache(model)` with options is all that was done to it, and
nothing in fxcache knows a class.
"""
CHECKED = """
## Checks

With `Fn_compute_blocks` and `Bn_compute_blocks` of 1 and 0, 1 and 1, 2 and 1, beside the plain model under the same
compiler, which Dynamo traces as it does for `enable_cache` (a number that is read off a tensor stays in the graph; cut
there, the plain model has other kernels, which may differ in the last bits) and which is called in the same order (a
second size brings code for all sizes, which may serve the first one from then on):

1. **never reused**: two different steps are computed in the code that could reuse, bit for bit as the plain model.
2. **identical call**: the inputs of a step as another step are reused, within 1e-5 of the plain model.
3. **really reused**: other inputs, under a large threshold, give something else than the plain model: the middle did
   not run. The call before is computed, bit for bit as the plain model.
4. **second size** (first split): another size in the same generation is computed, bit for bit as the plain model, and
   its own identical call is reused within 1e-5.
5. **first size again** (first split): the identical call of the first size is within 1e-5 of the plain model.

Where the size of what is stored depends on data (words that a mask leaves), the first call of a generation and of a
size meets it, and only the second, the same once more, is stored: 3 and 4 check that the second is computed too.

A class that is refused gives one warning that says why, and the plain model's outputs bit for bit.
"""


def outcome(row: Mapping[str, Any]) -> str:
    """What became of a class, in a word or in what was seen instead."""
    if row["ok"]:
        part = "" if len(row["splits"]) == len(SPLITS) else f" ({', '.join(row['splits'])} only)"
        note = f"; one size only: {row['one_size']}" if row.get("one_size") else ""
        return f"refused, as it should be{part}" if row["refusal"] else f"ok{part}{note}"
    return "; ".join(faults(row)) or "not ok"


def faults(row: Mapping[str, Any]) -> list[str]:
    """Everything that is not as it should be."""
    if row["error"]:
        return [row["error"]]
    found = []
    if row["trunk"] != row["expected"]:
        found.append(f"trunk {row['trunk'] or 'none'} instead of {row['expected'] or 'none'}")
    if bool(row["refusal"]) != bool(row["why"]):
        found.append(f"refused: {row['refusal']}" if row["refusal"] else "not refused")
    seen = {(check, word) for words in row["splits"].values() for check, word in words.items() if word != "ok"}
    for check, word in sorted(seen):
        splits = [split for split, words in row["splits"].items() if words.get(check) == word]
        found.append(f"{check} ({', '.join(splits)}): {word}")
    return found


def summary_lines(rows: Rows) -> list[str]:
    """How many classes there are of each kind."""
    cached = sum(row["ok"] and not row["refusal"] for row in rows.values())
    refused = sum(row["ok"] and bool(row["refusal"]) for row in rows.values())
    wrong = [name for name, row in rows.items() if not row["ok"]]
    lines = [f"{len(rows)} classes: {cached} cached, {refused} refused with the reason, {len(wrong)} not ok."]
    return [*lines, *(f"{name}: {outcome(rows[name])}" for name in wrong)]


def origins(rows: Rows) -> str:
    """Where rows come from: commit and processor, those of most of them first."""
    counts = Counter(f"commit {row['commit']} on {row['cpu']}" for row in rows.values()).most_common()
    if len(counts) == 1:
        return counts[0][0]
    return "; ".join(f"{origin}: {count}" for origin, count in counts)


def table_rows(rows: Rows) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and lines of the table in the terminal."""
    lines = []
    for name, row in rows.items():
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else "-"
        word = outcome(row) if row["ok"] else "NOT OK"
        lines.append((name, row.get("trunk") or "-", *_counts(row), word, seconds))
    return COLUMNS, lines


def page(report: Mapping[str, Any]) -> str:
    """The page of the documentation."""
    sections = {inner: report[inner] for inner in ("eager", "inductor") if report[inner].get("rows")}
    lines = ["# Coverage", "", *INTRODUCTION.strip().splitlines(), ""]
    for inner, section in sections.items():
        versions = section["versions"]
        with_them = f"torch {versions['torch']}, diffusers {versions['diffusers']}; {origins(section['rows'])}"
        lines.append(f"- `inner_backend={inner}` ({with_them}): {summary_lines(section['rows'])[0]}")
    lines += ["", *CHECKED.strip().splitlines(), ""]
    names = report["classes"]
    first = next(iter(sections.values()))["rows"] if sections else {}
    lines += ["## Cached", "", f"| class | trunk | blocks | streams | {' | '.join(sections)} |"]
    lines.append("|---|---|---|---|" + "---|" * len(sections))
    shown = [name for name in names if not first.get(name, {}).get("refusal")]
    for name in shown:
        row = first.get(name, {})
        words = [_word(section["rows"].get(name)) for section in sections.values()]
        lines.append(f"| {name} | {row.get('trunk') or '-'} | {' | '.join(_counts(row))} | {' | '.join(words)} |")
    lines += ["", "Streams: tensors that are kept of a computed step. Blocks are those of the tiny model.", ""]
    lines += ["## Refused", "", f"| class | why | the warning | {' | '.join(sections)} |"]
    lines.append("|---|---|---|" + "---|" * len(sections))
    for name in names:
        if name not in shown:
            row = first[name]
            words = [_word(section["rows"].get(name)) for section in sections.values()]
            lines.append(f"| {name} | {row['why'] or '-'} | {row['refusal']} | {' | '.join(words)} |")
    return "\n".join(lines) + "\n"


def _counts(row: Mapping[str, Any]) -> tuple[str, str]:
    known = row.get("trunk")
    return (str(row["blocks"]), str(row["streams"])) if known else ("-", "-")


def _word(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not run"
    return outcome(row) if row["ok"] else f"**no**: {outcome(row)}"
