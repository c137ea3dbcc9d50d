"""Run the checks of every case and write what came out: a JSON file, and the page of the documentation made of it.

python -m tests.integration.supported            run all checks, write both files
python -m tests.integration.supported --only dit run these, keep the results of the others
python -m tests.integration.supported --page     write the page again from the JSON file
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch

from tests.integration.cases import CASES, NOT_BUILT
from tests.integration.examine import CHECKS, REFUSED_CHECKS, Examined, checks_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULTS, PAGE = DOCS / "supported-pipelines.json", DOCS / "supported-pipelines.md"
MARK = {"passed": "yes", "failed": "**no**"}


def examine(names: Iterable[str]) -> dict[str, Any]:
    """The results of all checks of some cases."""
    cases, last = {}, None
    for name, case in ((name, CASES[name]) for name in names):
        if (case.family or name) != last:
            torch._dynamo.reset()
            last = case.family or name
        of = Examined(case)
        outcomes = {}
        for check in checks_of(case):
            try:
                check(of)
                outcomes[check.__name__] = "passed"
            except Exception as error:
                outcomes[check.__name__] = "failed"
                print(f"{name}: {check.__name__}: {error!r}", flush=True)
        tiny = case.make()
        kinds = [type(getattr(tiny.pipe, model)).__name__ for model in case.models]
        cases[name] = {
            "pipeline": type(tiny.pipe).__name__,
            "transformer": kinds[0] if len(kinds) == 1 else f"{len(kinds)} x {kinds[0]}",
            "scheduler": type(tiny.pipe.scheduler).__name__,
            "shows": case.shows,
            "steps": case.steps,
            **of.notes,
            "checks": outcomes,
        }
        print(name, outcomes, flush=True)
    return cases


def page(results: dict[str, Any]) -> str:
    """The page of the documentation."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    cases = results["cases"]
    cached = {name: case for name, case in cases.items() if "refusal" not in case}
    lines = [
        "# Supported pipelines",
        "",
        "Written by `python -m tests.integration.supported` from the results of the tests; do not edit.",
        f"With {versions}, on the CPU: tiny models with random weights and few steps, so the counts say that reuse",
        "works, not how much of it a real model allows. `fxcache.enable_cache(pipe)` was the only line added to each.",
        "",
        "## Cached",
        "",
        "| case | pipeline, scheduler | what it shows | trunk | branches | reused |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in cached.items():
        trunk, branches = "; ".join(case["trunk"]), ", ".join(case["branches"])
        reused = f"{case['reused']} of {case['calls']} calls"
        lines.append(
            f"| {name} | {case['pipeline']}, {case['scheduler']} | {case['shows']} | {trunk} | {branches} | {reused} |"
        )
    lines += ["", "## Refused", "", "One warning, and the output of the plain pipeline.", ""]
    lines += ["| case | pipeline | the warning |", "|---|---|---|"]
    for name, case in cases.items():
        if "refusal" in case:
            lines.append(f"| {name} | {case['pipeline']} | {case['refusal']} |")
    lines += ["", "## Checks", ""]
    used = dict.fromkeys((*CHECKS, *REFUSED_CHECKS))
    for number, check in enumerate(used, 1):
        lines.append(f"{number}. `{check.__name__}`: {(inspect.getdoc(check) or '').rstrip('.')}.")
    lines += ["", f"| case | {' | '.join(str(number) for number in range(1, len(used) + 1))} |"]
    lines.append("|---" * (len(used) + 1) + "|")
    for name, case in cases.items():
        row = [MARK.get(case["checks"].get(check.__name__, ""), "-") for check in used]
        lines.append(f"| {name} | {' | '.join(row)} |")
    lines += ["", "## Not built", ""]
    lines += [f"- {name}: {reason}." for name, reason in results["not_built"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", action="store_true", help="only write the page, from the JSON file")
    parser.add_argument(
        "--only", nargs="+", metavar="CASE", choices=CASES, help="run these, keep the results of others"
    )
    told = parser.parse_args()
    if not told.page:
        kept = json.loads(RESULTS.read_text())["cases"] if told.only else {}
        found = {**kept, **examine(told.only or CASES)}
        versions = {"torch": torch.__version__.partition("+")[0], "diffusers": diffusers.__version__}
        cases = {name: found[name] for name in CASES}
        RESULTS.write_text(json.dumps({"versions": versions, "cases": cases, "not_built": NOT_BUILT}, indent=1) + "\n")
    PAGE.write_text(page(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
