"""One generation of a contestant, and what is measured of it: times of steps, compilations, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import (
    clear_compilation_metrics,
    counters,
    get_compilation_metrics,
    set_compilation_metrics_limit,
)

from benchmarks.comparison.entries import Entry
from benchmarks.schedules import Schedule
from benchmarks.startup import peak, reset_peak, synchronize


@dataclass
class Drawn:
    """What one generation gave."""

    pictures: Tensor | None
    seconds: float
    steps_ms: list[float]
    """From the end of a step to the end of the next one; the first begins with the generation."""
    decisions: tuple[str, ...]
    skipped_blocks: float | None = None
    """Executions of a block that were saved, where the decisions do not tell."""

    def of(self, letter: str) -> list[float]:
        """Times of the steps that all branches decided so, but the first one, which sets the generation up."""
        alike = [set(letters) == {letter} for letters in zip(*self.decisions, strict=True)]
        return [ms for ms, is_alike in list(zip(self.steps_ms, alike, strict=True))[1:] if is_alike]


class Clock:
    """Marks of time that do not make the host wait: events on a GPU, the host's clock elsewhere."""

    def __init__(self, device: str) -> None:
        self._is_cuda = torch.device(device).type == "cuda"
        self._marks: list[Any] = []

    def mark(self, _: int = 0) -> None:
        """Note the time, on a GPU that at which it gets here."""
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Between each two marks; the device has to be synchronised."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if self._is_cuda:
            return [begin.elapsed_time(end) for begin, end in pairs]
        return [1e3 * (end - begin) for begin, end in pairs]


def draw(entry: Entry, schedule: Schedule, number: int, count: int) -> Drawn:
    """Draw the pictures of a round; RuntimeError where other steps were computed than those of the mask."""
    stage = entry.stage
    entry.begin(schedule)
    clock = Clock(stage.device)
    with watching(entry, clock.mark):
        synchronize(stage.device)
        begin = time.perf_counter()
        clock.mark()
        pictures = stage.model.draw(entry.pipeline, number, count, schedule.steps)
        synchronize(stage.device)
        seconds = time.perf_counter() - begin
    decisions = entry.decisions()
    if schedule.mask is not None:
        wanted = schedule.mask.replace("1", "C").replace("0", ".")
        if set(decisions) != {wanted}:
            raise RuntimeError(f"expected the steps {wanted} in every branch, found {', '.join(decisions)}")
    return Drawn(pictures, seconds, clock.milliseconds(), decisions, entry.skipped_blocks())


@contextmanager
def watching(entry: Entry, watcher: Callable[[int], None]) -> Iterator[None]:
    """Call a watcher at the end of every step."""
    # first of all: what others do at the end of a step belongs to the next one
    entry.watchers.insert(0, watcher)
    try:
        yield
    finally:
        entry.watchers.remove(watcher)


@dataclass
class Compilation:
    """What Dynamo did: graphs compiled, breaks between them, and frames that were compiled more than once."""

    graphs: int = 0
    graph_breaks: int = 0
    recompiles: int = 0


@contextmanager
def compilation() -> Iterator[Compilation]:
    """Note what is compiled inside; filled in at the end."""
    found = Compilation()
    set_compilation_metrics_limit(100_000)
    clear_compilation_metrics()
    before = _counted()
    yield found
    graphs, breaks = (after - earlier for after, earlier in zip(_counted(), before, strict=True))
    frames = [(each.co_name, each.co_filename, each.co_firstlineno) for each in get_compilation_metrics()]
    found.graphs, found.graph_breaks, found.recompiles = graphs, breaks, len(frames) - len(set(frames))


def _counted() -> tuple[int, int]:
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


@dataclass(frozen=True)
class Memory:
    """Bytes of one generation."""

    peak_bytes: int
    """Most that is held above what was held before it: activations and state, no weights."""
    state_bytes: int
    """Most that is held between two steps for reuse."""


def memory(entry: Entry, schedule: Schedule, count: int) -> Memory:
    """Draw the first round once more, and look at the memory."""
    states = [0]
    held = reset_peak(entry.stage.device)
    with watching(entry, lambda _: states.append(entry.state_bytes())):
        draw(entry, schedule, 0, count)
    return Memory(peak(entry.stage.device) - held, max(states))
