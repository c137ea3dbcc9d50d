"""Do something at every step of a tiny pipeline, from outside: raise, hand over to another thread, run another one."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from tests.models.tiny_pipeline import TinyPipeline


class Broken(Exception):
    """What a callback of a user raises."""


class _Step:
    """Stands for the method of one scheduler; a copy of the scheduler has the plain method."""

    def __init__(self, scheduler: Any, act: Callable[[int], None]) -> None:
        self.scheduler, self.act, self.calls = scheduler, act, 0
        self.original = scheduler.step
        functools.update_wrapper(self, self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        self.act(self.calls)
        return self.original(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo[id(self.scheduler)]
        return MethodType(type(copied).step, copied)


@contextmanager
def each_step(tiny: TinyPipeline, act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with the number of the step, from 1, before its scheduler steps."""
    scheduler = tiny.pipe.scheduler
    scheduler.step = _Step(scheduler, act)
    try:
        yield
    finally:
        del scheduler.step


@contextmanager
def breaking(tiny: TinyPipeline, step: int) -> Iterator[None]:
    """Raise at a step."""

    def act(number: int) -> None:
        if number == step:
            raise Broken

    with each_step(tiny, act):
        yield


class Turns:
    """Lets threads take turns, one step each; only one runs at a time."""

    def __init__(self, names: list[str]) -> None:
        self.waiting, self.changed, self.order = list(names), threading.Condition(), ""

    def begin(self) -> None:
        """Wait for the first turn of the running thread."""
        with self.changed:
            self._wait()

    def take(self) -> None:
        """Pass the turn on, and wait until it comes back."""
        with self.changed:
            self.order += self.waiting[0]
            self.waiting.append(self.waiting.pop(0))
            self.changed.notify_all()
            self._wait()

    def leave(self) -> None:
        """The running thread is done."""
        with self.changed:
            self.waiting.remove(threading.current_thread().name)
            self.changed.notify_all()

    def _wait(self) -> None:
        me = threading.current_thread().name
        assert self.changed.wait_for(lambda: self.waiting[0] == me, timeout=240)


def in_threads(work: Callable[[], None], names: list[str]) -> None:
    """Run one function in several named threads."""
    threads = [threading.Thread(target=work, name=name) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
        assert not thread.is_alive()
