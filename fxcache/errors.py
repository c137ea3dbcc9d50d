"""What fxcache raises and warns: one base class, a few children, and the refusal as a value."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import ClassVar

__all__ = ["FxcacheError", "OptionError", "Refusal", "RefusalError", "RefusalWarning", "StateError"]

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


class FxcacheError(Exception):
    """Base class of every error that fxcache raises on purpose."""


class OptionError(FxcacheError, ValueError):
    """An option has an unknown name or an impossible value."""

    @classmethod
    def of(cls, option: str, value: object, expected: str) -> OptionError:
        """Return the error for one option: ``max_contexts=0: expected an integer >= 1``."""
        return cls(f"{option}={_SHORT.repr(value)}: expected {expected}")


class StateError(FxcacheError, RuntimeError):
    """A generation, a context or a cached module is used in a way its present state does not allow."""


@dataclass(frozen=True)
class Refusal:
    """Why a graph is left as it is. A value, not an exception: the caller decides between warning and raising."""

    reason: str
    """One sentence without a full stop, in the words of the documentation."""

    nodes: tuple[str, ...] = ()
    """Names of the graph nodes at fault, the most telling first."""

    _SHOWN: ClassVar[int] = 3

    def __str__(self) -> str:
        if not self.nodes:
            return self.reason
        shown = ", ".join(self.nodes[: self._SHOWN])
        left = len(self.nodes) - self._SHOWN
        more = f" and {left} more" if left > 0 else ""
        return f"{self.reason} (at {shown}{more})"


class RefusalError(FxcacheError, RuntimeError):
    """A graph cannot be cached and ``on_refusal="raise"`` was asked for."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal

    def __str__(self) -> str:
        return f"fxcache cannot cache this graph: {self.refusal}"


class RefusalWarning(UserWarning):
    """A graph runs uncached because fxcache refused it; the message names the reason and the nodes."""
