"""Where a contestant sits: in this process, or in one of its own around the same weights.

In one process contestants would share what Dynamo keeps per function: a graph break in one of them makes it give up on
the function for all. So each has a process; only one of them works at a time.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import multiprocessing

from benchmarks.comparison.contestants import Contestant, chosen
from benchmarks.comparison.costs import operations_by_letter
from benchmarks.comparison.entries import Entry, Stage
from benchmarks.comparison.measure import Compilation, Drawn, Memory, compilation, draw, memory
from benchmarks.comparison.models import MODELS
from benchmarks.schedules import Schedule


class Refused(Exception):
    """What a contestant raised, in a line."""


@dataclasses.dataclass
class Prepared:
    """What it took to get ready."""

    compile_s: float
    """The first generation less a second one."""
    compiled: Compilation


@dataclasses.dataclass
class Examined:
    """What is looked at in generations of its own."""

    memory: Memory
    flops: dict[str, float] | None = None
    """Per call of the transformer, by what was decided; None where the decisions tell."""
    gpu: Any = None
    """On a GPU: the steps as the profiler saw them, and what was decided in them."""


class Worker:
    """What a seat can be asked for."""

    def __init__(self, contestant: Contestant, stage: Stage) -> None:
        self._contestant, self._stage = contestant, stage
        self._entry: Entry | None = None

    def prepare(self, short: Schedule, count: int) -> Prepared:
        """Open and compile."""
        self.close()
        with _limits(), compilation() as compiled:
            self._entry = self._contestant.open(self._stage)
            first = self._draw(short, 0, count)
        second = self._draw(short, 0, count)
        return Prepared(first.seconds - second.seconds, compiled)

    def draw(self, schedule: Schedule, number: int, count: int, keep: bool = False) -> tuple[Drawn, int]:
        """Draw a round, and count the graphs compiled on the way; pictures only where they are to be kept."""
        with _limits(), compilation() as compiled:
            drawn = self._draw(schedule, number, count)
        return dataclasses.replace(drawn, pictures=drawn.pictures.cpu() if keep else None), compiled.graphs

    def examine(self, schedule: Schedule, count: int) -> Examined:
        """Look at memory and, on a GPU, at kernels and waits."""
        assert self._entry is not None
        with _limits(), torch.no_grad():
            found = Examined(memory(self._entry, schedule, count))
            if self._contestant.skips_inside:
                found.flops = operations_by_letter(self._entry, schedule)
            if torch.device(self._stage.device).type == "cuda":
                from benchmarks.comparison.gpu import profiled

                found.gpu = profiled(self._entry, schedule, count)
        return found

    def close(self) -> None:
        """Let the contestant go."""
        if self._entry is not None:
            self._entry.close()
        self._entry = None
        gc.collect()

    def respond(self, word: str, arguments: Sequence[Any]) -> tuple[bool, Any]:
        """Whether it went well, and what came of it or was raised."""
        try:
            return True, getattr(self, word)(*arguments)
        # foreign code raises what it likes, and the other contestants are to go on
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            return False, f"{type(error).__name__}: {lines[0]}"

    def _draw(self, schedule: Schedule, number: int, count: int) -> Drawn:
        assert self._entry is not None
        with torch.no_grad():
            return draw(self._entry, schedule, number, count)


class Seat:
    """A contestant in this process: it works when its answer is fetched."""

    def __init__(self, contestant: Contestant, stage: Stage) -> None:
        if contestant.tuned:
            raise ValueError(f"--methods {contestant.name}: expected no +tuned together with --in-process")
        self._worker = Worker(contestant, stage)
        self._asked: tuple[str, Sequence[Any]] = ("", ())

    def ask(self, word: str, *arguments: Any) -> Any:
        """The answer of the `Worker` to a word; Refused where it raised something."""
        self.begin(word, *arguments)
        return self.answer()

    def begin(self, word: str, *arguments: Any) -> None:
        """Ask, and do not wait for the answer."""
        self._asked = (word, arguments)

    def answer(self) -> Any:
        """Wait for the answer."""
        succeeded, found = self._worker.respond(*self._asked)
        if not succeeded:
            raise Refused(found)
        return found

    def close(self) -> None:
        """End."""
        self._worker.close()


class RemoteSeat(Seat):
    """A contestant in a process of its own; it starts when this is made, and works only when it is asked to."""

    def __init__(self, contestant: Contestant, stage: Stage) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._connection, there = spawning.Pipe()
        task = (there, contestant.name, stage.model.name, stage.device, stage.inner, stage.source)
        self._process = spawning.Process(target=serve, args=task)
        self._process.start()
        there.close()

    def begin(self, word: str, *arguments: Any) -> None:
        try:
            self._connection.send((word, arguments))
        except BrokenPipeError:
            raise self._died() from None

    def answer(self) -> Any:
        try:
            succeeded, found = self._connection.recv()
        except EOFError:
            raise self._died() from None
        if not succeeded:
            raise Refused(found)
        return found

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._connection.send(None)
        self._process.join()

    def _died(self) -> Refused:
        self._process.join()
        return Refused(f"its process ended with code {self._process.exitcode}")


def serve(connection: Connection, name: str, model: str, device: str, inner: str, source: Any) -> None:
    """What a process does: take a seat, and answer until it is told to end."""
    (contestant,) = chosen([name], ())
    if contestant.tuned:
        import cache_dit

        cache_dit.set_compile_configs()
    worker = Worker(contestant, Stage(MODELS[model], device, source, inner))
    while (message := connection.recv()) is not None:
        connection.send(worker.respond(*message))
    worker.close()


def _limits() -> Any:
    # several contestants, and twins of one model, compile the same functions: Dynamo would stop at the eighth
    return torch._dynamo.config.patch(recompile_limit=10_000, accumulated_recompile_limit=10_000)
