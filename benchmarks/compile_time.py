"""How long compiling takes, and that no step gets slower for it: `python -m benchmarks.compile_time`.

A transformer of the Flux family with 12, 24 and 57 blocks, one double to two single ones, nothing cached:

    plain         torch.compile, Inductor, the whole transformer in one graph
    regional      diffusers' compile_repeated_blocks: every kind of block compiled for itself, the rest eager
    cache-dit     cache-dit enabled, but never reusing, and torch.compile; left out where it is not installed
    fxcache       fxcache with a threshold of 0: plain Inductor
    fxcache-once  the same with share_blocks=True: blocks of one structure are compiled once
    fxcache-f1b0  fxcache with the first block in front of a branch, every step computed

and, if they are asked for,

    fxcache-traced  fxcache-once with trace_once=False: Dynamo traces every block
    callee, loop    other ways than that of fxcache-once, see `benchmarks.block_ways`

Every contestant starts in a process of its own, once with empty caches (cold) and then some times more with these
caches (warm): all take turns, a warm start is the median one, and its ratio the median of those of a turn. Compile
time is the first call less a later one. Then one process runs all of them step by step, in an order drawn anew for
every step; ratios are those of paired steps. cache-dit runs in a process of its own, with plain Inductor.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.block_ways import WAYS, backend
from benchmarks.flux import PRESETS, Loop, Preset, new_transformer
from benchmarks.report import RESULTS, Spread, environment, paired_ratio, table, write_json
from benchmarks.startup import compile_with, run_module, synchronize

_F1B0 = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 1_000_000}
FXCACHE: dict[str, dict[str, Any]] = {
    "fxcache": {"residual_diff_threshold": 0.0},
    "fxcache-once": {"residual_diff_threshold": 0.0, "share_blocks": True},
    "fxcache-f1b0": _F1B0,
}
"""Options of the contestants under fxcache."""
CONTESTANTS = ("plain", "regional", "cache-dit", *FXCACHE)
FXCACHE["fxcache-traced"] = {**FXCACHE["fxcache-once"], "trace_once": False}
OTHERS = ("fxcache-traced", *WAYS)
"""Those that run only if they are named."""
GOALS = {"cold": 1.1, "warm": 1.2, "step": 1.01}
"""At most these ratios to plain, for `fxcache-once`."""
_LATER_CALLS = 3


def preset_of(blocks: int, grid: int, name: str) -> Preset:
    """The preset with another number of blocks and of rows of image tokens."""
    double = blocks // 3
    return replace(PRESETS[name], layers=double, single_layers=blocks - double, grid=grid)


def compiled(transformer: torch.nn.Module, contestant: str) -> Callable[..., Any]:
    """The transformer as the contestant's users compile it."""
    if contestant == "plain":
        return compile_with(transformer, "plain", "inductor", {})
    if contestant == "regional":
        transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)  # type: ignore[operator]
        return transformer
    if contestant == "cache-dit":
        os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
        import cache_dit

        cache_dit.enable_cache(_adapter(transformer), cache_config=cache_dit.DBCacheConfig(**_F1B0))
        cache_dit.set_compile_configs()
        return torch.compile(transformer, dynamic=False)
    if contestant in WAYS:
        return torch.compile(transformer, backend=backend(contestant), dynamic=False)
    return compile_with(transformer, "fxcache", "inductor", FXCACHE[contestant])


def _adapter(transformer: Any) -> Any:
    from cache_dit import BlockAdapter, ForwardPattern

    return BlockAdapter(
        transformer=transformer,
        blocks=[transformer.transformer_blocks, transformer.single_transformer_blocks],
        forward_pattern=[ForwardPattern.Pattern_1, ForwardPattern.Pattern_1],
        has_separate_cfg=False,
    )


def start(task: dict[str, Any]) -> dict[str, float]:
    """Compile one contestant in this process; seconds, and those of processor time with the compilers it starts."""
    preset, device = _preset(task), task["device"]
    call = compiled(new_transformer(preset, device), task["contestant"])
    loop = Loop(preset, device)
    walls, cpus = [], []
    with torch.no_grad():
        for step in range(1 + _LATER_CALLS):
            inputs = loop.step(step, 1 + _LATER_CALLS)
            synchronize(device)
            wall, cpu = time.perf_counter(), _cpu_seconds()
            call(**inputs, return_dict=False)
            synchronize(device)
            walls.append(time.perf_counter() - wall)
            cpus.append(_cpu_seconds() - cpu)
    return {
        "first_call_s": walls[0],
        "compile_s": walls[0] - min(walls[1:]),
        "compile_cpu_s": cpus[0] - min(cpus[1:]),
    }


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def compare_steps(task: dict[str, Any]) -> dict[str, list[float]]:
    """Run the contestants side by side; seconds of every step of each, and the largest difference to plain."""
    preset, device = _preset(task), task["device"]
    calls = {name: compiled(new_transformer(preset, device), name) for name in task["contestants"]}
    loop, order = Loop(preset, device), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    errors = dict.fromkeys(calls, 0.0)
    with torch.no_grad():
        for step in range(task["steps"] + 2):
            inputs = loop.step(step, task["steps"] + 2)
            outputs = {}
            for name in order.sample(list(calls), len(calls)):
                synchronize(device)
                begin = time.perf_counter()
                outputs[name] = calls[name](**inputs, return_dict=False)[0]
                synchronize(device)
                if step > 1:
                    seconds[name].append(time.perf_counter() - begin)
            wanted = outputs["plain"].float()
            for name, output in outputs.items():
                error = (output.float() - wanted).abs().max() / wanted.abs().max()
                errors[name] = max(errors[name], error.item())
    return {"seconds": seconds, "errors": errors}  # type: ignore[dict-item]


def _preset(task: dict[str, Any]) -> Preset:
    return preset_of(task["blocks"], task["grid"], task["preset"])


def _in_process(task: dict[str, Any], caches: Path) -> Any:
    return run_module("benchmarks.compile_time", ["--task", json.dumps(task)], caches)


def side_by_side(names: Sequence[str]) -> list[list[str]]:
    """Who runs with whom in one process, always with plain Inductor; its figures are those of the last group.

    cache-dit breaks the graph in the loop over the blocks. Dynamo then compiles no forward of this class any more, of
    no other model either.
    """
    together = [name for name in names if name != "cache-dit"]
    return [["plain", "cache-dit"], together] if "cache-dit" in names else [together]


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per contestant and number of blocks."""
    names = [name for name in given.contestants if name != "cache-dit" or find_spec("cache_dit") is not None]
    rows = []
    groups = side_by_side(names)
    with tqdm(total=len(given.blocks) * ((1 + given.warm_starts) * len(names) + len(groups)), unit="process") as bar:
        for blocks in given.blocks:
            base = {"blocks": blocks, "grid": given.grid, "preset": given.preset, "device": given.device}
            found: dict[str, dict[str, Any]] = {}
            with tempfile.TemporaryDirectory(prefix="fxcache-bench-") as folder:
                starts: dict[str, list[dict[str, float]]] = {name: [] for name in names}
                for turn in range(1 + given.warm_starts):
                    for name in names:
                        bar.set_postfix_str(f"{blocks} blocks, {name}, {'warm' if turn else 'cold'}")
                        starts[name].append(_in_process({**base, "contestant": name}, Path(folder) / name))
                        bar.update()
                for name in names:
                    found[name] = {"contestant": name, **base, **_of_starts(starts[name], starts["plain"])}
                for group in groups:
                    bar.set_postfix_str(f"{blocks} blocks, steps of {', '.join(group)}")
                    task = {**base, "contestants": group, "steps": given.steps}
                    steps = _in_process(task, Path(folder) / "plain")
                    bar.update()
                    for name, mine in steps["seconds"].items():
                        found[name]["step_ms"] = Spread.of(mine).scaled(1e3)
                        found[name]["step_to_plain"] = paired_ratio(mine, steps["seconds"]["plain"])
                        found[name]["relative_error"] = steps["errors"][name]
            rows += found.values()
    return rows


def _of_starts(mine: list[dict[str, float]], plain: list[dict[str, float]]) -> dict[str, Any]:
    """A cold start and warm ones after it, and their ratios to plain Inductor's in the same turns."""
    cold, *warm = mine
    ratios = [one["compile_s"] / other["compile_s"] for one, other in zip(mine, plain, strict=True)]
    return {
        "cold": cold,
        "warm": sorted(warm, key=lambda start: start["compile_s"])[len(warm) // 2],
        "warm_starts": [start["compile_s"] for start in warm],
        "cold_to_plain": ratios[0],
        "warm_to_plain": median(ratios[1:]),
    }


def print_report(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table, and whether the goals are met."""
    columns = (
        "blocks, contestant", "cold s", "to plain", "CPU s", "warm s", "to plain", "CPU s", "step ms", "to plain",
        "error",
    )  # fmt: skip
    print("\n" + table(columns, map(_cells, rows)), "\n")
    for row in rows:
        if row["contestant"] == "fxcache-once":
            reached = {
                "cold": row["cold_to_plain"],
                "warm": row["warm_to_plain"],
                "step": row["step_to_plain"].median,
            }
            verdicts = (
                f"{what} {value:.2f} <= {GOALS[what]} {'met' if value <= GOALS[what] else 'MISSED'}"
                for what, value in reached.items()
            )
            print(f"{row['blocks']} blocks: " + ", ".join(verdicts))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    times = [
        cell
        for caches in ("cold", "warm")
        for cell in (
            f"{row[caches]['compile_s']:.1f}",
            f"{row[f'{caches}_to_plain']:.2f}",
            f"{row[caches]['compile_cpu_s']:.1f}",
        )
    ]
    steps = (f"{row['step_ms'].median:.1f}", f"{row['step_to_plain'].median:.3f}", f"{row['relative_error']:.1e}")
    return (f"{row['blocks']} {row['contestant']}", *times, *steps)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the arguments, measure, print the table, write the JSON; return its content."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="small", help="width of the blocks, text, dtype")
    parser.add_argument("--blocks", type=int, nargs="+", default=[12, 24, 57])
    parser.add_argument("--grid", type=int, default=16, help="rows and columns of image tokens")
    parser.add_argument("--contestants", nargs="+", choices=(*CONTESTANTS, *OTHERS), default=list(CONTESTANTS))
    parser.add_argument("--warm-starts", type=int, default=3, help="per contestant; an odd number")
    parser.add_argument("--steps", type=int, default=20, help="measured steps")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/compile-time-DEVICE.json")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.task is not None:
        task = json.loads(given.task)
        result: dict[str, Any] = compare_steps(task) if "contestants" in task else start(task)
        print(json.dumps(result))
        return result
    if given.warm_starts < 1 or given.warm_starts % 2 == 0:
        parser.error(f"--warm-starts: {given.warm_starts}; expected an odd number, of which one is the median")
    if "plain" not in given.contestants:
        parser.error("--contestants: plain is what the others are compared with")
    rows = measure(given)
    print_report(rows)
    report = {
        "benchmark": "compile_time",
        **environment(given.device),
        "shape": asdict(preset_of(given.blocks[0], given.grid, given.preset)) | {"dtype": None},
        "steps": given.steps,
        "warm_starts": given.warm_starts,
        "goals": GOALS,
        "rows": rows,
    }
    path = given.json or RESULTS / f"compile-time-{given.device.partition(':')[0]}.json"
    write_json(path, report)
    print(f"written to {path}")
    return report


if __name__ == "__main__":
    main()
