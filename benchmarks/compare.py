"""All contestants on the same weights, noise, schedule and compile settings: `python -m benchmarks.compare`.

On a trained model (`--model digits`) every contestant is tried with every setting of its grid, and the table has
quality beside speed. On random weights, or with `--schedules`, all compute the steps of the same masks: speed only.
Each contestant has a process of its own around one set of weights, and they draw in turns.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison.contestants import Contestant, chosen
from benchmarks.comparison.costs import Costs, costs_of
from benchmarks.comparison.earlier import added_to, best_rows
from benchmarks.comparison.entries import Stage
from benchmarks.comparison.fixed import Competitor, begin, compete, prepare, rows_of
from benchmarks.comparison.fronts import plot_fronts, summary_of
from benchmarks.comparison.grids import PRESETS, Frame, preset_mask
from benchmarks.comparison.models import MODELS, Model, blocks_of
from benchmarks.comparison.seats import RemoteSeat, Seat
from benchmarks.comparison.shown import fixed_lines, show_prepared, summary_lines, sweep_lines
from benchmarks.comparison.sweep import BASES, Plan, Row, Sweep, report_row, rows_again, rows_to_measure
from benchmarks.report import RESULTS, environment, write_json

SPEED = (
    "eager", "inductor", "ideal", "fxcache", "fxcache-taylorseer1", "cache-dit-compile", "cache-dit-compile-blocks",
    "diffusers-fbc-compile", "diffusers-fbc-compile-blocks",
)  # fmt: skip
"""Who takes part in a comparison of speed, unless told otherwise."""
QUALITY = (
    "fewer-steps", "fxcache-regression", "fxcache-f0-regression", "fxcache-f0-taylorseer2", "fxcache-taylorseer1",
    "fxcache", "fxcache-easycache", "fxcache-dbprune-taylorseer1", "cache-dit-compile",
    "cache-dit-taylorseer1-compile", "cache-dit-taylorseer2-compile", "cache-dit-foca-compile",
    "cache-dit-dmd-compile", "cache-dit", "cache-dit-dbprune-taylorseer1", "diffusers-fbc-compile",
    "diffusers-taylorseer-compile", "diffusers-taylorseer-lite-compile", "diffusers-magcache-compile",
    "diffusers-pab-compile", "diffusers-seacache", "diffusers-fastercache", "fxcache-measured-taylorseer2",
    "fxcache-measured-regression",
)  # fmt: skip
"""Who takes part in a comparison of quality, unless told otherwise."""
METHODS = (
    "fewer-steps", "fxcache-all", "cache-dit", "cache-dit-taylorseer1", "cache-dit-taylorseer2", "cache-dit-foca",
    "cache-dit-dmd", "cache-dit-dbprune", "cache-dit-dbprune-taylorseer1",
)  # fmt: skip
"""The same where nothing is compiled, so that times say nothing: every method of fxcache, and of cache-dit."""
FEW_STEPS = (
    "fewer-steps", "fxcache", "fxcache-taylorseer1", "fxcache-regression", "fxcache-f0-taylorseer1",
    "fxcache-f0-regression", "fxcache-measured-taylorseer2", "cache-dit-compile",
    "cache-dit-taylorseer1-compile", "cache-dit-taylorseer2-compile", "diffusers-taylorseer-lite-compile",
)  # fmt: skip
"""The same for `--few-step`. Those named f0 and measured, and the lite one, run no block in a reused step."""


class Run:
    """What both kinds of comparison need: the weights, the places of the contestants, the file."""

    def __init__(self, given: argparse.Namespace, default: Sequence[str]) -> None:
        self.given, self.model = given, MODELS[given.model]
        self.steps = given.steps or self.model.steps
        self.contestants = chosen(given.methods, default)
        self.stage = Stage(self.model, given.device, self.model.load(given.device), given.inner_backend)
        self.costs = costs_of(self.model, self.stage.source)
        if torch.device(given.device).type == "cuda":
            # what counting has taken is for the contestants
            torch.cuda.empty_cache()
        self.path = given.json or default_path(given)
        self._head = {"benchmark": "compare", **environment(given.device), "case": _case(given, self.steps, self.costs)}
        if any(each.group == "cache-dit" for each in self.contestants):
            self._head["versions"]["cache-dit"] = version("cache-dit")
        self.kept: list[dict[str, Any]] = []
        """Rows of an earlier run."""

    def place(self, contestant: Contestant) -> Seat:
        """A seat for a contestant."""
        return (Seat if self.given.in_process else RemoteSeat)(contestant, self.stage)

    def add(self, wanted: Sequence[Row]) -> list[Row]:
        """Go on with the report that is there; what is left to measure."""
        added = added_to(self.path, self._head, wanted)
        self._head, self.kept = added.head, added.kept
        return added.rows

    def note(self, **found: Any) -> dict[str, Any]:
        """Write what is known so far."""
        report = {**self._head, **found}
        write_json(self.path, report)
        return report


def run_fixed(given: argparse.Namespace) -> dict[str, Any]:
    """Measure speed at the masks; the JSON is written whenever something new is known."""
    run = Run(given, SPEED)
    deaf = [each.name for each in run.contestants if each.grid is not None and not each.follows_masks]
    if deaf:
        raise ValueError(f"--methods {' '.join(deaf)}: expected contestants that follow a mask, or no --schedules")
    frame = frame_of(given, run.model, run.stage)
    schedules = {preset: preset_mask(preset, frame) for preset in given.schedules or ("slow", "fast", "ultra")}
    competitors = [Competitor(each) for each in run.contestants]

    def note() -> dict[str, Any]:
        return run.note(rows=rows_of(competitors, schedules, run.costs))

    try:
        _prepare_all(competitors, run)
        for preset, schedule in schedules.items():
            compete(competitors, preset, schedule, given.rounds, given.count, note)
            rows = rows_of(competitors, schedules, run.costs)
            print(fixed_lines([row for row in rows if row["preset"] == preset], schedule), flush=True)
        return note()
    finally:
        for each in competitors:
            if each.seat is not None:
                each.seat.close()


def _prepare_all(competitors: Sequence[Competitor], run: Run) -> None:
    given = run.given
    # a process takes seconds to start: on a machine of many cores it does so while others compile
    ahead = len(competitors) if given.together else max(1, len(os.sched_getaffinity(0)) - 1)
    if given.together:
        for each in competitors:
            each.seat = run.place(each.contestant)
            begin(each, given.count)
    for number, each in enumerate(competitors):
        for next_one in competitors[number : number + ahead]:
            next_one.seat = next_one.seat or run.place(next_one.contestant)
        if not given.together:
            begin(each, given.count)
        prepare(each, given.count, given.examine)
        print(show_prepared(each), flush=True)


def run_sweep(given: argparse.Namespace) -> dict[str, Any]:
    """Measure quality over speed; the JSON is written after every few rows."""
    again = given.best_of and best_rows(given)
    run = Run(given, [row["method"] for row in again] if again else _default_methods(given))
    frame = frame_of(given, run.model, run.stage)
    rows = rows_again(again) if again else rows_to_measure(run.contestants, frame)
    rows = run.add(rows) if given.add else rows
    abreast = len(rows) if again else given.abreast
    plan = Plan(given.samples, given.rounds, frame, abreast, apart=bool(again), examine=given.examine)
    measured: dict[int, dict[str, Any]] = {}

    def done(here: Sequence[Row]) -> None:
        base = sweep.bases[BASES[0]]
        pictures = torch.cat([one.pictures for one in base.drawn[: plan.rounds] if one.pictures is not None])
        reference = run.model.reference(pictures, plan.rounds, plan.count)
        for row in [*sweep.bases.values(), *here]:
            measured[id(row)] = report_row(row, sweep.bases, reference, plan, run.costs)
            # pictures are needed no longer, but those of the uncached models
            if row in here:
                row.drawn.clear()
        print(sweep_lines([measured[id(row)] for row in here]), flush=True)
        note()

    def note() -> dict[str, Any]:
        # an earlier run that rows are added to has its own of the uncached models
        here = rows if run.kept else [*sweep.bases.values(), *rows]
        found = [*run.kept, *(measured[id(row)] for row in here if id(row) in measured)]
        return run.note(rows=found, summary=summary_of(found))

    sweep = Sweep(plan, chosen(BASES, ()), run.place, done)
    sweep.run(rows)
    report = note()
    if not again:
        plot_fronts(report["rows"], run.path.with_suffix(".png"), run.model.name)
    print(summary_lines(report["summary"]))
    return report


def _default_methods(given: argparse.Namespace) -> Sequence[str]:
    if given.few_step:
        return FEW_STEPS
    return QUALITY if given.inner_backend == "inductor" else METHODS


def frame_of(given: argparse.Namespace, model: Model, stage: Stage) -> Frame:
    """What the grids share: a quarter of the blocks at either end for few steps, else the first block."""
    steps = given.steps or model.steps
    quarter = len(blocks_of(stage.source.transformer)) // 4
    return Frame(steps, quarter, quarter) if given.few_step else Frame(steps)


def _check(given: argparse.Namespace) -> None:
    """ValueError for arguments that no comparison can be made of."""
    for name, least in {"rounds": 1, "count": 1, "steps": 4}.items():
        value = getattr(given, name)
        if value is not None and value < least:
            raise ValueError(f"--{name}={value}: expected at least {least}")
    if given.few_step and given.steps is None:
        raise ValueError("--few-step: expected --steps as well, such as --steps 8")
    if given.best_of and (given.methods or given.schedules or given.few_step):
        raise ValueError("--best-of: expected no --methods, --schedules or --few-step, which say what is measured too")
    if given.add and (given.best_of or given.schedules or not MODELS[given.model].is_judged):
        raise ValueError("--add: expected a comparison of quality, no --best-of or --schedules")


def default_path(given: argparse.Namespace) -> Path:
    """Where the figures of a comparison go."""
    ending = f"-{given.steps}-steps" if given.few_step else "-best" if given.best_of else ""
    if given.schedules and MODELS[given.model].is_judged:
        ending = "-schedules"  # beside the comparison of quality
    if given.inner_backend != "inductor":
        ending += f"-{given.inner_backend}"
    return RESULTS / f"compare-{given.model}{ending}-{torch.device(given.device).type}.json"


def _case(given: argparse.Namespace, steps: int, costs: Costs) -> dict[str, Any]:
    names = ("model", "device", "rounds", "samples", "count", "few_step", "together", "in_process", "examine")
    asked = {name: getattr(given, name) for name in names}
    asked["best_of"] = given.best_of and given.best_of.name
    return {**asked, "inner": given.inner_backend, "steps": steps, "flops_of_a_call": costs.call}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the arguments, measure, print the table, write plot and JSON; return its content."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="digits", choices=tuple(MODELS))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--steps", type=int, help="default: those of the model")
    parser.add_argument("--methods", nargs="+", default=[], help="names of contestants, or GROUP-all")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=40, help="pictures per row of a trained model, over all rounds")
    parser.add_argument("--abreast", type=int, default=16, help="contestants that share the rounds of uncached models")
    parser.add_argument("--few-step", action="store_true", help="a quarter of the blocks at either end always run")
    parser.add_argument(
        "--best-of", type=Path, metavar="JSON", help="only what was the best of its project in an earlier comparison"
    )
    parser.add_argument("--add", action="store_true", help="measure what the JSON does not have yet, keep the rest")
    parser.add_argument("--schedules", nargs="+", choices=PRESETS, help="compare speed at these masks")
    parser.add_argument("--count", type=int, default=1, help="pictures per generation in a comparison of speed")
    parser.add_argument("--no-examine", dest="examine", action="store_false", help="leave out memory and the profiler")
    parser.add_argument(
        "--together", action="store_true", help="compile all at the same time: quicker, but compile times mean nothing"
    )
    parser.add_argument(
        "--in-process", action="store_true", help="one process for all: starts faster, but graph breaks of one hurt all"
    )
    parser.add_argument("--inner-backend", default="inductor", choices=("inductor", "aot_eager", "eager"))
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/compare-MODEL-DEVICE.json")
    parser.add_argument("--readme", action="store_true", help="measure nothing: write the README's table from the JSON")
    given = parser.parse_args(arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        _check(given)
        if given.readme:
            from benchmarks.comparison.readme import write_readme

            return write_readme(given.json or default_path(given))
        # random weights have no quality
        speed_only = given.schedules or not MODELS[given.model].is_judged
        report = run_fixed(given) if speed_only else run_sweep(given)
    except ValueError as error:
        parser.error(str(error))
    print(f"written: {given.json or default_path(given)}")
    return report


if __name__ == "__main__":
    main()
