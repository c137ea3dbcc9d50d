"""What the profiler sees of a generation on a GPU: how long kernels run in a step, and how often the host waits."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.comparison.entries import Entry
from benchmarks.comparison.measure import draw, watching
from benchmarks.schedules import Schedule

Event = dict[str, Any]
"""Of a trace in Chrome's format, times in microseconds."""
STEP = "denoising step "
WORK = ("kernel", "gpu_memcpy", "gpu_memset")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclass(frozen=True)
class StepOnGpu:
    """One step as the profiler saw it."""

    busy_ms: float
    """Time in which at least one kernel or copy runs."""
    kernels: int
    host_syncs: int
    """How often the host waits for the GPU."""


def profiled(entry: Entry, schedule: Schedule, count: int) -> tuple[list[StepOnGpu], tuple[str, ...]]:
    """Draw the first round once more under the profiler; every step, and what was decided in it."""
    spans: list[Any] = []

    def next_span(step: int) -> None:
        if spans:
            spans[-1].__exit__(None, None, None)
        spans.append(record_function(f"{STEP}{step + 1}"))
        spans[-1].__enter__()

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        next_span(-1)
        with watching(entry, next_span):
            drawn = draw(entry, schedule, 0, count)
        spans[-1].__exit__(None, None, None)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return steps_of(events, schedule.steps), drawn.decisions


def steps_of(events: Iterable[Event], steps: int) -> list[StepOnGpu]:
    """What a trace has of every step: kernels by the step they ran in on the GPU, waits by that of the host."""
    by_category: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event.get("ph") == "X":
            by_category[event.get("cat", "")].append(event)
    runtime = [*by_category["cuda_runtime"], *by_category["cuda_driver"]]
    waits = [event for event in runtime if event["name"] in WAITS]
    work = [event for category in WORK for event in by_category[category]]
    on_gpu = _windows(by_category["gpu_user_annotation"], steps)
    on_host = _windows(by_category["user_annotation"], steps)
    found = []
    for step in range(steps):
        inside = _starting_in(work, on_gpu[step])
        busy = covered([(event["ts"], event["ts"] + event["dur"]) for event in inside])
        kernels = sum(event["cat"] == "kernel" for event in inside)
        found.append(StepOnGpu(busy / 1e3, kernels, len(_starting_in(waits, on_host[step]))))
    return found


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(end - max(begin, reached), 0.0)
        reached = max(reached, end)
    return total


def _windows(marks: Iterable[Event], steps: int) -> list[tuple[float, float]]:
    """From the begin of the mark of a step to that of the next one; ValueError where a step has none."""
    begins = {event["name"]: event["ts"] for event in marks if event["name"].startswith(STEP)}
    missing = [step for step in range(steps) if f"{STEP}{step}" not in begins]
    if missing:
        raise ValueError(f"the trace has no mark of the steps {missing}")
    times = [begins[f"{STEP}{step}"] for step in range(steps)]
    times.append(begins.get(f"{STEP}{steps}", float("inf")))
    return list(itertools.pairwise(times))


def _starting_in(events: Iterable[Event], window: tuple[float, float]) -> list[Event]:
    return [event for event in events if window[0] <= event["ts"] < window[1]]
