"""Generations and branches: who is denoising right now, as far as someone has said so.

A generation is one denoising run. It comes from the user (`Generation`), from a progress bar that a pipeline opened,
or, when nobody said anything, it is the ambient one of the running thread (or asyncio task).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from fxcache import checks
from fxcache.errors import OptionError, StateError

T = TypeVar("T")
_serials = itertools.count(1)
_optional_count = checks.integer(1, optional=True)
_optional_index = checks.integer(0, optional=True)


class _End:
    """Tells, once, everyone who keeps something for a generation that it is over."""

    def __init__(self, serial: int) -> None:
        self.serial = serial
        self.over = False
        self.watchers: list[Callable[[int], None]] = []

    def fire(self) -> None:
        self.over = True
        watchers, self.watchers = self.watchers, []
        for watcher in watchers:
            watcher(self.serial)


class Run:
    """One denoising run; ends with `end`, or when nobody holds it any more."""

    def __init__(self, label: str, bounded: bool, num_inference_steps: int | None = None) -> None:
        self.serial = next(_serials)
        """Unique in the process."""
        self.label = label or f"generation {self.serial}"
        self.bounded = bounded
        """Whether somebody says where this run starts and ends."""
        self.num_inference_steps = num_inference_steps
        """A hint: second-order schedulers call the model more often."""
        self.seen_to_end = False
        """Whether its end will show, so that another loop beginning is not taken for it."""
        self.comes_back = False
        """Whether a branch was called at one time twice, as by a scheduler of second order."""
        self._end = _End(self.serial)
        weakref.finalize(self, self._end.fire).atexit = False

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self._end.over

    def end(self) -> None:
        """End the run: what was kept for it is dropped."""
        self._end.fire()

    def watch(self, watcher: Callable[[int], None]) -> None:
        """Call `watcher(serial)` when the run ends."""
        self._end.watchers.append(watcher)


_entered: ContextVar[tuple[Run, ...]] = ContextVar("fxcache_generations", default=())
Loop = tuple[Run, "weakref.ref[Any] | None"]
_loops: ContextVar[tuple[Loop, ...]] = ContextVar("fxcache_loops", default=())
"""Denoising loops that have begun in this thread, each with the pipeline that runs it; the last one that is not over
is running, those before it wait for it."""
_ambient: ContextVar[Run | None] = ContextVar("fxcache_ambient", default=None)


class Generation:
    """One denoising run, named by the user: calls inside `with` belong to it and share nothing with any other.

    It may be entered any number of times, so that several requests can take turns on one model, and from several
    threads, one at a time. Its state is dropped by `close`, or when the object is gone.

    Example:
        >>> import fxcache
        >>> first, second = fxcache.generation("first"), fxcache.generation("second")
        >>> for _ in range(2):
        ...     with first:
        ...         pass  # one step of the first request
        ...     with second:
        ...         pass  # one step of the second
        >>> first.close(), second.close()
        (None, None)
    """

    def __init__(self, name: str | None = None, num_inference_steps: int | None = None) -> None:
        if name is not None and not isinstance(name, str):
            raise OptionError.of("name", name, "None or a string")
        steps = _optional_count("num_inference_steps", num_inference_steps)
        self._run = Run(name or "", bounded=True, num_inference_steps=steps)

    @property
    def name(self) -> str:
        """The given name, or a numbered one."""
        return self._run.label

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._run.over

    def close(self) -> None:
        """Drop the state of this generation; the statistics stay. A closed generation cannot be entered again."""
        self._run.end()

    def __enter__(self) -> Generation:
        if self._run.over:
            raise StateError(f"generation {self.name!r} is closed: make another with fxcache.generation()")
        _entered.set((*_entered.get(), self._run))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _entered.set(_without_last(_entered.get(), self._run))

    def __repr__(self) -> str:
        return f"Generation({self.name!r}{', closed' if self.closed else ''})"


@dataclass(frozen=True)
class Branch:
    """What somebody said about the call: the branch's name, and the step if they know it."""

    name: str
    step_index: int | None = None
    num_inference_steps: int | None = None
    timestep: float | None = None
    sigma: float | None = None


_branches: ContextVar[tuple[Branch, ...]] = ContextVar("fxcache_contexts", default=())


class BranchContext:
    """A branch of the current generation, named by the user: overrides everything fxcache finds out by itself.

    Example:
        >>> import fxcache
        >>> with fxcache.context("cond", step_index=0):
        ...     pass  # call the model
    """

    def __init__(self, name: str, step_index: int | None = None, num_inference_steps: int | None = None) -> None:
        if not isinstance(name, str):
            raise OptionError.of("name", name, "a string")
        steps = _optional_count("num_inference_steps", num_inference_steps)
        self._branch = Branch(name, _optional_index("step_index", step_index), steps)

    def __enter__(self) -> BranchContext:
        _branches.set((*_branches.get(), self._branch))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _branches.set(_without_last(_branches.get(), self._branch))


def current_run() -> Run:
    """Return the run the calling thread is in: the user's, else the pipeline's, else the ambient one."""
    entered = _entered.get()
    if entered:
        return entered[-1]
    run: Run
    for run, _ in reversed(_loops.get()):
        if not run.over:
            return run
    ambient = _ambient.get()
    if ambient is None:
        ambient = Run("ambient", bounded=False)
        _ambient.set(ambient)
    return ambient


def current_branch() -> Branch | None:
    """Return the innermost `context` the user is in."""
    branches = _branches.get()
    return branches[-1] if branches else None


def begin_loop(total: int | None, pipeline: object | None = None) -> Run:
    """Start the run of a denoising loop in this thread; those before it are over, or wait if their end will show."""
    waiting = []
    for loop in _loops.get():
        if not loop[0].seen_to_end:
            loop[0].end()
        if not loop[0].over:
            waiting.append(loop)
    run = Run("", bounded=True, num_inference_steps=total)
    run.label = f"loop {run.serial}"
    _loops.set((*waiting, (run, None if pipeline is None else weakref.ref(pipeline))))
    return run


def end_loop(pipeline: object | None = None) -> None:
    """End the loop that began last in this thread, of this pipeline if one is given."""
    loops = _loops.get()
    for position in range(len(loops) - 1, -1, -1):
        run, owner = loops[position]
        if pipeline is None or (owner is not None and owner() is pipeline):
            _loops.set((*loops[:position], *loops[position + 1 :]))
            run.end()
            return


def _without_last(entries: tuple[T, ...], entry: T) -> tuple[T, ...]:
    """Return `entries` without the last occurrence of `entry`."""
    for position in range(len(entries) - 1, -1, -1):
        if entries[position] is entry:
            return (*entries[:position], *entries[position + 1 :])
    return entries
