"""Every transformer class of diffusers with and without fxcache: `python -m benchmarks.coverage`.

One row per class: the trunk that is found, and a short run of a tiny random model in which every call is compared with
that of the plain model. Classes are examined in other processes, one after the other: a crash costs one row.

python -m benchmarks.coverage                        all classes, under eager and under Inductor; writes JSON and page
python -m benchmarks.coverage --inner-backend eager  some minutes
python -m benchmarks.coverage --models NAME ...      these; the committed results of the others stay, every row with
                                                     its commit
python -m benchmarks.coverage --only-page            docs/coverage.md again, from the JSON file
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.coverage_page import PAGE, SPLITS, page, summary_lines, table_rows
from benchmarks.report import RESULTS, environment, other_version, table, write_json

INNER = ("eager", "inductor")
TIMEOUT_S = 900
"""For one class; then its process is ended."""
NO_CONFIG = "no config"
"""The error of a class that diffusers exports and that has no tiny form here."""

Examine = Callable[[str, str], dict[str, Any]]


def examine_class(name: str, inner: str, splits: Sequence[str] = tuple(SPLITS)) -> dict[str, Any]:
    """The row of one class."""
    from benchmarks.coverage_checks import examine
    from tests.models.every import ENTRIES

    if name not in ENTRIES:
        return failed(NO_CONFIG)
    outcome = examine(ENTRIES[name], inner, {split: SPLITS[split] for split in splits})
    return {"builder": ENTRIES[name].builder, "ok": outcome.ok, **asdict(outcome)}


def failed(error: str) -> dict[str, Any]:
    """The row of a class that could not be examined."""
    return {"builder": "", "ok": False, "splits": {}, "error": error}


def _work(connection: Connection, examine: Examine) -> None:
    """What a process does: receive (class, compiler), send the row, until None comes."""
    torch.set_num_threads(1)
    gc.disable()  # tracing makes so many objects that looking for cycles all the time costs more than it gives back
    for name, inner in iter(connection.recv, None):
        connection.send(examine(name, inner))
        gc.collect()


class Worker:
    """A process that examines one class after the other; a new one takes over when it is lost."""

    def __init__(self, examine: Examine, timeout_s: float) -> None:
        self.examine, self.timeout_s = examine, timeout_s
        self.process: Any = None

    def __call__(self, name: str, inner: str) -> dict[str, Any]:
        """The row of one class, also if its process is lost over it."""
        if self.process is None:
            self._start()
        try:
            self.connection.send((name, inner))
            if self.connection.poll(self.timeout_s):
                row: dict[str, Any] = self.connection.recv()
                return row
            reason = f"no answer in {self.timeout_s:.0f} s"
        except (EOFError, OSError):
            self.process.join(10)
            reason = f"the process ended with code {self.process.exitcode}"
        self.process.kill()
        self.process.join()
        self.process = None
        return failed(reason)

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.connection.send(None)
            self.process.join(10)
            self.process.kill()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, self.examine), daemon=True)
        self.process.start()
        other.close()


def run_all(
    names: Iterable[str],
    inners: Sequence[str],
    jobs: int,
    examine: Examine = examine_class,
    timeout_s: float = TIMEOUT_S,
    keep: Callable[[dict[str, dict[str, Any]]], None] = lambda found: None,
) -> dict[str, dict[str, Any]]:
    """The rows by compiler and class; `jobs` processes take the classes from one queue; `keep` sees every new row."""
    waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    found: dict[str, dict[str, Any]] = {inner: {} for inner in inners}
    lock = threading.Lock()
    plan = [(name, inner) for inner in inners for name in names]
    for task in plan:
        waiting.put(task)

    with tqdm(total=len(plan), desc="coverage", unit="class") as bar:

        def drain() -> None:
            worker = Worker(examine, timeout_s)
            try:
                while True:
                    name, inner = waiting.get_nowait()
                    row = worker(name, inner)
                    with lock:
                        found[inner][name] = row
                        bar.set_postfix_str(f"{name}: {'ok' if row['ok'] else 'NOT OK'}")
                        bar.update()
                        keep(found)
            except queue.Empty:
                worker.close()

        threads = [threading.Thread(target=drain) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found


def merged(
    kept: dict[str, Any], found: dict[str, dict[str, Any]], names: Sequence[str], where: dict[str, Any]
) -> dict[str, Any]:
    """The report: rows just found, and those kept of other classes and other compilers; no class that has gone.

    Every row says at which commit and on what processor it was found: they may have come from several runs, and
    Inductor's code, the last bits of its results with it, depends on the vectors that a processor has.
    """
    report = {"benchmark": "coverage", "classes": list(names), **{inner: kept.get(inner, {}) for inner in INNER}}
    about = {"versions": where["versions"]}
    row_from = {"commit": where["commit"], "cpu": where["cpu"]}
    for inner, rows in found.items():
        dated = {name: {**row, **row_from} for name, row in rows.items()}
        both = {**report[inner].get("rows", {}), **dated}
        if rows:
            report[inner] = {**about, "rows": {name: both[name] for name in names if name in both}}
    return report


def other_versions(kept: dict[str, Any], inners: Sequence[str], where: dict[str, Any]) -> str:
    """In what the rows of these compilers differ from new ones, which they could not stand beside, or nothing."""
    for inner in inners:
        theirs, mine = kept.get(inner, {}).get("versions", {}), where["versions"]
        if name := other_version(theirs, mine):
            return f"{name} {mine[name]}, and the rows of the others under {inner} are of {theirs[name]}"
    return ""


def print_report(report: dict[str, Any]) -> None:
    """The table for people."""
    for inner in INNER:
        rows = report[inner].get("rows")
        if rows:
            columns, lines = table_rows(rows)
            print(f"\ninner_backend={inner}\n{table(columns, lines)}\n")
            print("\n".join(summary_lines(rows)))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the arguments, examine, print the table, write JSON and page; return the report."""
    from tests.models.every import exported

    names = exported()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks.coverage"
    )
    parser.add_argument("--models", nargs="+", metavar="CLASS", choices=names, help="examine these only")
    parser.add_argument("--inner-backend", default="both", choices=(*INNER, "both"))
    parser.add_argument("--splits", nargs="+", choices=tuple(SPLITS), default=tuple(SPLITS), help="default: all")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path, default=RESULTS / "coverage-cpu.json")
    parser.add_argument("--page", type=Path, help=f"default: docs/{PAGE.name} beside the default JSON, else none")
    parser.add_argument("--only-page", action="store_true", help="examine nothing, write the page from the JSON file")
    given = parser.parse_args(arguments)
    inners = INNER if given.inner_backend == "both" else (given.inner_backend,)
    kept = json.loads(given.json.read_text()) if given.json.exists() else {}
    if given.only_page:
        report = kept
    else:
        here = environment()
        where = {**here, "cpu": f"{here['machine']['cpu']}, {torch.backends.cpu.get_cpu_capability()}"}
        differ = other_versions(kept, inners, where)
        if differ and given.models:
            parser.error(f"--models: {differ}; expected another --json, or no --models")
        if differ:
            kept = {inner: section for inner, section in kept.items() if inner not in inners}

        def keep(found: dict[str, dict[str, Any]]) -> None:
            write_json(given.json, merged(kept, found, names, where))

        examine = functools.partial(examine_class, splits=given.splits)
        found = run_all(given.models or names, inners, given.jobs, examine, keep=keep)
        report = merged(kept, found, names, where)
        print_report(report)
        print(f"written to {given.json}")
    target = given.page or (PAGE if given.json == parser.get_default("json") else None)
    if target:
        target.write_text(page(report), encoding="utf-8")
        print(f"written to {target}")
    return report


if __name__ == "__main__":
    main()
