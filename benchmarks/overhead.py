"""What fxcache costs and what is left of a reused step: `python -m benchmarks.overhead`.

Five contestants over one set of random weights run the same steps side by side in one process, in an order drawn anew
for every step, and every ratio is one of paired steps: a slow minute of the machine meets all of them.

    plain      the inner compiler alone, Inductor unless told otherwise
    full       fxcache, every step computed by schedule: no comparison, no reuse
    compared   fxcache, every step compared with the one before and computed
    reused     fxcache F1B0, every step but the first of a loop reused
    ideal      the inner compiler alone on a model that has only the block which a reused step runs

Compile times and memory are measured in processes of their own, with empty caches and again with the caches filled.
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.flux import PRESETS, Loop, Preset, ideal_transformer, new_transformer
from benchmarks.report import RESULTS, Spread, environment, paired_ratio, size, table, write_json
from benchmarks.startup import compile_with, measure_startup, peak, reset_peak, synchronize
from fxcache.api import generation, summary

F1B0 = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0}
POLICIES: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "full": {**F1B0, "max_warmup_steps": 1_000_000},
    "compared": {**F1B0, "max_warmup_steps": 0, "residual_diff_threshold": 1e-30},
    "reused": {**F1B0, "max_warmup_steps": 1, "residual_diff_threshold": 1.0},
    "ideal": None,
}
"""Options of each contestant; None: not under fxcache."""
GOALS = {("full", "plain"): 1.01, ("compared", "plain"): None, ("reused", "ideal"): 1.05, ("reused", "plain"): None}


@dataclass
class Contestant:
    """One way to run a step, and what was measured of it."""

    name: str
    call: Any
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    """Processor time of all threads: what other programs on the machine take does not count."""
    working_bytes: list[int] = field(default_factory=list)
    host_syncs: list[int] = field(default_factory=list)
    error: float = 0.0
    """Largest difference of an output to that of `plain`, relative to the largest output."""

    def __post_init__(self) -> None:
        self.generation = generation(self.name)

    def run(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Run one step."""
        with torch.no_grad(), self.generation:
            output: torch.Tensor = self.call(**inputs, return_dict=False)[0]
        return output


def contestants_of(transformer: torch.nn.Module, preset: Preset, inner: str) -> list[Contestant]:
    """All contestants, around the same weights; nothing is compiled yet."""
    ideal = ideal_transformer(transformer, preset)
    found = []
    for name, options in POLICIES.items():
        module = ideal if name == "ideal" else transformer
        kind = "plain" if options is None else "fxcache"
        found.append(Contestant(name, compile_with(module, kind, inner, options or {})))
    return found


def measure_steps(contestants: Sequence[Contestant], loop: Loop, steps: int, repeats: int, device: str) -> None:
    """Run `repeats` loops of 1 + `steps` steps and note the times of all but the first step of each.

    Before that, every contestant runs two steps to be compiled.
    """
    order = random.Random(0)
    with tqdm(total=len(contestants), desc="compiling", unit="model") as bar:
        for contestant in contestants:
            bar.set_postfix_str(contestant.name)
            for step in range(2):
                contestant.run(loop.step(step, steps + 1))
            bar.update()
    with tqdm(total=repeats * (steps + 1), desc="measuring", unit="step") as bar:
        for _ in range(repeats):
            for step in range(steps + 1):
                inputs, outputs = loop.step(step, steps + 1), {}
                for contestant in order.sample(contestants, len(contestants)):
                    outputs[contestant.name] = _timed(contestant, inputs, device, noted=step > 0)
                _compare(contestants, outputs)
                bar.update()
    if torch.device(device).type == "cuda":
        _count_syncs(contestants, loop)


def _timed(contestant: Contestant, inputs: dict[str, torch.Tensor], device: str, noted: bool) -> torch.Tensor:
    is_cuda = torch.device(device).type == "cuda"
    held = reset_peak(device) if is_cuda else 0
    synchronize(device)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    output = contestant.run(inputs)
    synchronize(device)
    if noted:
        contestant.seconds.append(time.perf_counter() - begin)
        contestant.cpu_seconds.append(time.process_time() - begin_cpu)
        if is_cuda:
            contestant.working_bytes.append(peak(device) - held)
    return output


def _compare(contestants: Sequence[Contestant], outputs: dict[str, torch.Tensor]) -> None:
    wanted = outputs["plain"].float()
    scale = wanted.abs().max().item()
    for contestant in contestants:
        if contestant.name in ("full", "compared"):
            error = (outputs[contestant.name].float() - wanted).abs().max().item() / scale
            contestant.error = max(contestant.error, error)


def _count_syncs(contestants: Sequence[Contestant], loop: Loop) -> None:
    """Count how often each contestant makes the host wait for the GPU, in one step more of its own."""
    steps = 3
    for contestant in contestants:
        for step in range(steps):
            inputs = loop.step(step, steps)
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with warnings.catch_warnings(record=True) as seen:
                    warnings.simplefilter("always")
                    contestant.run(inputs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            if step > 0:
                contestant.host_syncs.append(sum("synchronizing CUDA" in str(warning.message) for warning in seen))


def report_of(
    contestants: Sequence[Contestant], transformer: torch.nn.Module, preset: Preset, case: dict[str, Any]
) -> dict[str, Any]:
    """Everything measured, ready for JSON; times in milliseconds."""
    cached = summary(transformer).contexts
    rows = []
    for contestant in contestants:
        own = [context for context in cached if context.generation == contestant.name]
        is_cached = POLICIES[contestant.name] is not None
        checked = contestant.name in ("full", "compared")
        rows.append(
            {
                "contestant": contestant.name,
                **case,
                "policy": POLICIES[contestant.name],
                "time_ms": Spread.of(contestant.seconds).scaled(1e3),
                "cpu_ms": Spread.of(contestant.cpu_seconds).scaled(1e3),
                "reused_steps": sum(context.reused for context in own) if is_cached else None,
                "all_steps": sum(context.steps for context in own) if is_cached else None,
                "state_bytes": sum(context.state_bytes for context in own) if is_cached else None,
                "working_bytes": max(contestant.working_bytes, default=None),
                "host_syncs": max(contestant.host_syncs, default=None),
                "relative_error": contestant.error if checked else None,
            }
        )
    by_name = {contestant.name: contestant for contestant in contestants}
    ratios = [
        {
            "ratio": f"{top} / {bottom}",
            "goal": goal,
            "wall": paired_ratio(by_name[top].seconds, by_name[bottom].seconds),
            "cpu": paired_ratio(by_name[top].cpu_seconds, by_name[bottom].cpu_seconds),
        }
        for (top, bottom), goal in GOALS.items()
    ]
    state = max(row["state_bytes"] or 0 for row in rows)
    return {
        "rows": rows,
        "ratios": ratios,
        "state": {"bytes": state, "reference_and_live_outs": preset.state_bytes, "ratio": state / preset.state_bytes},
    }


def print_report(report: dict[str, Any]) -> None:
    """Print the tables."""
    rows = report["rows"]
    print(f"\n{rows[0]['shape']}, {rows[0]['dtype']}, {rows[0]['device']}, inner compiler {rows[0]['inner']}\n")
    columns = (
        "step",
        "median ms",
        "20 %",
        "80 %",
        "CPU ms",
        "steps",
        "reused",
        "state",
        "working",
        "syncs",
        "error to plain",
    )
    print(table(columns, map(_step_cells, rows)), "\n")
    columns = ("ratio of paired steps", "median", "20 %", "80 %", "of CPU time", "goal")
    print(table(columns, map(_ratio_cells, report["ratios"])), "\n")
    state = report["state"]
    print(f"state: {size(state['bytes'])}, {state['ratio']:.3f} times reference + live-outs", "\n")
    if report["startup"]:
        columns = ("start", "caches", "compile s", "to plain", "first call s", "working memory")
        print(table(columns, (_startup_cells(row, report["startup"]) for row in report["startup"])), "\n")


def _step_cells(row: dict[str, Any]) -> tuple[str, ...]:
    spread = row["time_ms"]
    return (
        row["contestant"],
        *(f"{value:.2f}" for value in (spread.median, spread.q20, spread.q80, row["cpu_ms"].median)),
        str(spread.count),
        "-" if row["reused_steps"] is None else f"{row['reused_steps']} of {row['all_steps']}",
        size(row["state_bytes"]),
        size(row["working_bytes"]),
        "-" if row["host_syncs"] is None else str(row["host_syncs"]),
        "-" if row["relative_error"] is None else f"{row['relative_error']:.1e}",
    )


def _ratio_cells(row: dict[str, Any]) -> tuple[str, ...]:
    spread, goal = row["wall"], row["goal"]
    verdict = "-" if goal is None else f"<= {goal} {'met' if spread.median <= goal else 'MISSED'}"
    values = (spread.median, spread.q20, spread.q80, row["cpu"].median)
    return (row["ratio"], *(f"{value:.4f}" for value in values), verdict)


def _startup_cells(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    plain = next(r for r in rows if r["contestant"] == "plain" and r["caches"] == row["caches"])
    return (
        row["contestant"],
        row["caches"],
        f"{row['compile_s']:.1f}",
        f"{row['compile_s'] / plain['compile_s']:.2f}",
        f"{row['first_call_s']:.1f}",
        size(row["working_bytes"]),
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the arguments, measure, print the tables, write the JSON; return its content."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--preset", choices=tuple(PRESETS), help="default: small on the CPU, flux-dev on a GPU")
    parser.add_argument("--steps", type=int, default=10, help="measured steps per loop")
    parser.add_argument("--repeats", type=int, default=3, help="loops")
    parser.add_argument("--inner-backend", default="inductor", choices=("inductor", "aot_eager", "eager"))
    parser.add_argument("--skip-compile-time", action="store_true")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/overhead-DEVICE.json")
    given = parser.parse_args(arguments)
    name = given.preset or ("small" if torch.device(given.device).type == "cpu" else "flux-dev")
    preset, inner = PRESETS[name], given.inner_backend

    startup: list[dict[str, Any]] = []
    if not given.skip_compile_time:
        # before this process holds a model: both may not fit at once
        with tqdm(total=4, desc="starting", unit="process") as bar:

            def tick(what: str) -> None:
                bar.set_postfix_str(what)
                bar.update()

            startup = measure_startup(name, given.device, inner, dict(POLICIES["reused"] or {}), tick)
    transformer = new_transformer(preset, given.device)
    contestants = contestants_of(transformer, preset, inner)
    # held until the report is made: the cache's state lives as long as the conditioning it belongs to
    loop = Loop(preset, given.device)
    measure_steps(contestants, loop, given.steps, given.repeats, given.device)
    case = {
        "shape": preset.shape,
        "dtype": str(preset.dtype).removeprefix("torch."),
        "device": given.device,
        "inner": inner,
    }
    report = {
        "benchmark": "overhead",
        **environment(given.device),
        "preset": name,
        "steps": given.steps,
        "repeats": given.repeats,
        **report_of(contestants, transformer, preset, case),
        "startup": startup,
    }
    print_report(report)
    path = given.json or RESULTS / f"overhead-{given.device.partition(':')[0]}.json"
    write_json(path, report)
    print(f"written to {path}")
    return report


if __name__ == "__main__":
    main()
