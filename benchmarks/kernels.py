"""Bandwidth that the kernels reach: `python -m benchmarks.kernels --device cuda`.

Every operator runs on the hidden states of known models. Three contestants take turns, and every ratio is one of
paired turns:

    ours       the operator, as the rewritten graph calls it
    copy       a copy on the same device that moves as many bytes
    inductor   what Inductor makes of the operator's reference

GB/s are the bytes of the operator's docstring over the time on the device; on a GPU its caches are cleared before every
turn. Before anything is measured, the operator is compared with its reference. Goals: 90 % of a copy, not slower than
Inductor.
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.operators import OPERATORS, Work
from benchmarks.report import RESULTS, Spread, environment, paired_ratio, size, table, write_json
from fxcache.kernels import _launch

GOALS = {"copy": 0.9, "inductor": 1.0}
CLEARED_BYTES = 512 << 20
"""Several times the largest cache, and long enough to fill that the host has given its next work when it ends."""
WARMUP = 5


@dataclass(frozen=True)
class Case:
    """A stream of hidden states."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


PRESETS = {
    "tiny": (Case("tiny", (2, 33, 65), torch.float32), Case("tiny, half", (1, 16, 64), torch.bfloat16)),
    "models": (
        Case("FLUX.1 1024x1024, image", (1, 4096, 3072), torch.bfloat16),
        Case("FLUX.1 1024x1024, text", (1, 512, 3072), torch.bfloat16),
        Case("Wan 14B 720p", (1, 75600, 5120), torch.bfloat16),
        Case("SD3 1024x1024, guided", (2, 4096, 1536), torch.float16),
    ),
}


def measure(case: Case, operator: str, device: str, repeats: int, with_inductor: bool) -> dict[str, Any]:
    """Check one operator on one case, then measure it; one row of the report."""
    generator = torch.Generator(device).manual_seed(0)
    work = OPERATORS[operator](case.shape, case.dtype, generator)
    error = _checked(work, f"{operator}, {case.name}")
    calls = {"ours": work.run, "copy": _copy_of(work.moved_bytes, device)}
    compile_s = None
    if with_inductor:
        torch._dynamo.reset()
        calls["inductor"] = _compiled(work)
        begin = time.perf_counter()
        calls["inductor"]()
        compile_s = time.perf_counter() - begin
    seconds = _take_turns(calls, device, repeats)
    rates = {name: [work.moved_bytes / second / 1e9 for second in times] for name, times in seconds.items()}
    ratios = {name: paired_ratio(rates["ours"], rates[name]) for name in GOALS if name in rates}
    return {
        "operator": operator,
        "case": case.name,
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "implementation": "triton" if _launch.runs_triton(work.stream) else "reference",
        "moved_bytes": work.moved_bytes,
        "relative_error": error,
        "time_us": {name: Spread.of(times).scaled(1e6) for name, times in seconds.items()},
        "gb_per_s": {name: Spread.of(values) for name, values in rates.items()},
        "share_of": ratios,
        "goals_met": {name: ratio.median >= GOALS[name] for name, ratio in ratios.items()},
        "inductor_compile_s": compile_s,
    }


def _checked(work: Work, what: str) -> float:
    """Largest difference between operator and reference relative to the largest value; too much of it ends the run."""
    error = 0.0
    for found, wanted in zip(work.results(work.run), work.results(work.reference), strict=True):
        largest = float(wanted.double().abs().max())
        error = max(error, float((found.double() - wanted.double()).abs().max()) / max(largest, 1e-30))
    if not error <= work.allowed:
        raise SystemExit(f"{what}: differs from its reference by {error:.2g}, allowed is {work.allowed:.2g}")
    return error


def _copy_of(moved_bytes: int, device: str) -> Callable[[], Any]:
    source = torch.zeros(moved_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _compiled(work: Work) -> Callable[[], Any]:
    compiled = torch.compile(work.function, dynamic=False)
    return lambda: compiled(*work.arguments)


def _take_turns(calls: dict[str, Callable[[], Any]], device: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of every turn on the device, in an order drawn anew for every round; warm-up rounds are left out."""
    clear = torch.empty(CLEARED_BYTES // 4, dtype=torch.int32, device=device) if _is_cuda(device) else None
    order, seconds = random.Random(0), {name: list[float]() for name in calls}
    for turn in range(WARMUP + repeats):
        for name in order.sample(list(calls), len(calls)):
            taken = _seconds(calls[name], clear)
            if turn >= WARMUP:
                seconds[name].append(taken)
    return seconds


def _seconds(call: Callable[[], Any], clear: Tensor | None) -> float:
    if clear is None:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    clear.zero_()
    first.record()
    call()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def _is_cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table: one line per operator and case; a mark where a goal is missed."""
    columns = ("operator", "case", "moved", "GB/s", "20-80 %", "copy GB/s", "of copy", "of Inductor", "error")
    print("\n" + table(columns, map(_line, rows)))
    print(f"\ngoals: of copy >= {GOALS['copy']:.0%}, of Inductor >= {GOALS['inductor']:.0%}; ! marks what misses them")


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    ours, copy = row["gb_per_s"]["ours"], row["gb_per_s"]["copy"]

    def share(name: str) -> str:
        if name not in row["share_of"]:
            return "-"
        return f"{row['share_of'][name].median:.0%}" + ("" if row["goals_met"][name] else " !")

    return (
        row["operator"],
        row["case"],
        size(row["moved_bytes"]),
        f"{ours.median:.0f}",
        f"{ours.q20:.0f}-{ours.q80:.0f}",
        f"{copy.median:.0f}",
        share("copy"),
        share("inductor"),
        f"{row['relative_error']:.1g}",
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the arguments, check and measure, print the table, write the JSON; return its content."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--preset", choices=tuple(PRESETS), help="default: tiny on the CPU, models on a GPU")
    parser.add_argument("--operators", nargs="+", choices=tuple(OPERATORS), default=tuple(OPERATORS))
    parser.add_argument("--repeats", type=int, default=50, help="measured turns of every contestant")
    parser.add_argument("--without-inductor", action="store_true")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/kernels-DEVICE.json")
    given = parser.parse_args(arguments)
    preset = given.preset or ("models" if _is_cuda(given.device) else "tiny")
    rows = []
    plan = [(case, operator) for case in PRESETS[preset] for operator in given.operators]
    with warnings.catch_warnings(), tqdm(plan, unit="row") as bar:
        # a kernel that does not compile would be measured as its reference
        warnings.filterwarnings("error", message="fxcache::", category=RuntimeWarning)
        for case, operator in bar:
            bar.set_postfix_str(f"{operator}, {case.name}")
            rows.append(measure(case, operator, given.device, given.repeats, not given.without_inductor))
    report = {
        "benchmark": "kernels",
        **environment(given.device),
        "device": given.device,
        "preset": preset,
        "repeats": given.repeats,
        "goals": GOALS,
        "rows": rows,
    }
    print_rows(rows)
    path = given.json or RESULTS / f"kernels-{given.device.partition(':')[0]}.json"
    write_json(path, report)
    print(f"written to {path}")
    return report


if __name__ == "__main__":
    main()
