"""All contestants on the same weights, noise, schedule and compile settings: `python -m benchmarks.compare`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison.contestants import chosen
from benchmarks.comparison.costs import Costs, costs_of
from benchmarks.comparison.entries import Stage
from benchmarks.comparison.fixed import Competitor, begin, compete, mask_schedule, prepare, rows_of
from benchmarks.comparison.models import MODELS
from benchmarks.comparison.seats import RemoteSeat, Seat
from benchmarks.comparison.shown import fixed_lines, show_prepared
from benchmarks.report import RESULTS, environment, write_json

PRESETS = ("slow", "medium", "fast", "ultra")
SPEED = (
    "eager", "inductor", "ideal", "fxcache", "fxcache-taylorseer1", "cache-dit-compile", "cache-dit-compile-blocks",
    "diffusers-fbc-compile", "diffusers-fbc-compile-blocks",
)  # fmt: skip
"""Who takes part in a comparison of speed, unless told otherwise."""


def run_fixed(given: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Measure speed at the masks; the JSON is written whenever something new is known."""
    model, taking_part = MODELS[given.model], chosen(given.methods, SPEED)
    steps = given.steps or model.steps
    stage = Stage(model, given.device, model.load(given.device), given.inner_backend)
    costs = costs_of(model, stage.source, given.count)
    if torch.device(given.device).type == "cuda":
        # what counting has taken is for the contestants
        torch.cuda.empty_cache()
    schedules = {preset: mask_schedule(preset, steps) for preset in given.schedules}
    report = {"benchmark": "compare", **environment(given.device), "case": _case(given, steps, costs)}
    if any(each.group == "cache-dit" for each in taking_part):
        report["versions"]["cache-dit"] = version("cache-dit")
    place = Seat if given.in_process else RemoteSeat
    competitors = [Competitor(each) for each in taking_part]
    # a process takes seconds to start: on a machine of many cores it does so while others compile
    ahead = max(1, report["machine"]["cores"] - 1)

    def note() -> dict[str, Any]:
        found = {**report, "rows": rows_of(competitors, schedules, costs)}
        write_json(path, found)
        return found

    try:
        if given.together:
            for each in competitors:
                each.seat = place(each.contestant, stage)
                begin(each, given.count)
        for number, each in enumerate(competitors):
            for next_one in competitors[number : number + ahead]:
                next_one.seat = next_one.seat or place(next_one.contestant, stage)
            if not given.together:
                begin(each, given.count)
            prepare(each, given.count, given.examine)
            print(show_prepared(each), flush=True)
            note()
        for preset, schedule in schedules.items():
            compete(competitors, preset, schedule, given.rounds, given.count, note)
            rows = rows_of(competitors, schedules, costs)
            print(fixed_lines([row for row in rows if row["preset"] == preset], schedule), flush=True)
        return note()
    finally:
        for each in competitors:
            if each.seat is not None:
                each.seat.close()
        print(f"written: {path}")


def _case(given: argparse.Namespace, steps: int, costs: Costs) -> dict[str, Any]:
    names = {
        "together": given.together,
        "in_process": given.in_process,
        "device": given.device,
        "inner": given.inner_backend,
        "rounds": given.rounds,
        "count": given.count,
    }
    return {"model": given.model, **names, "steps": steps, "flops_of_a_call": costs.call}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the arguments, measure, print the table, write the JSON; return its content."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="digits", choices=tuple(MODELS))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--steps", type=int, help="default: those of the model")
    parser.add_argument("--methods", nargs="+", default=[], help="names of contestants, or of groups of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=1, help="pictures per generation")
    parser.add_argument("--schedules", nargs="+", default=("slow", "fast", "ultra"), choices=PRESETS)
    parser.add_argument("--no-examine", dest="examine", action="store_false", help="leave out memory and the profiler")
    parser.add_argument(
        "--together", action="store_true", help="compile all at the same time: quicker, but compile times mean nothing"
    )
    parser.add_argument(
        "--in-process", action="store_true", help="one process for all: starts faster, but graph breaks of one hurt all"
    )
    parser.add_argument("--inner-backend", default="inductor", choices=("inductor", "aot_eager", "eager"))
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/compare-MODEL-DEVICE.json")
    given = parser.parse_args(arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    path = given.json or RESULTS / f"compare-{given.model}-{torch.device(given.device).type}.json"
    try:
        return run_fixed(given, path)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
