"""A lock that weak reference callbacks can leave messages at, whoever holds it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

Message = TypeVar("Message")


class Mailbox(Generic[Message]):
    """A lock; messages are handled under it, at once if it is free and before it is let go otherwise.

    A weak reference callback may run at any allocation, in the very thread that holds the lock, so it must never wait.
    """

    def __init__(self, handle: Callable[[Message], None]) -> None:
        self._lock = threading.Lock()
        self._messages: deque[Message] = deque()
        self._handle = handle

    def post(self, message: Message) -> None:
        """Leave a message without waiting."""
        self._messages.append(message)
        self._deliver()

    def __enter__(self) -> Mailbox[Message]:
        self._lock.acquire()
        self._drain()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._drain()
        finally:
            self._lock.release()
        self._deliver()

    def _deliver(self) -> None:
        while self._messages and self._lock.acquire(blocking=False):
            try:
                self._drain()
            finally:
                self._lock.release()

    def _drain(self) -> None:
        while self._messages:
            self._handle(self._messages.popleft())
