"""Checks of single option values: each takes the option's name and value and returns the value in its plain form.

A bool is not a number. Numbers may come as numpy scalars or as tensors without dimensions and leave as ``int`` or
``float``. Every failure is an :class:`~fxcache.errors.OptionError` that names option, value and what is allowed.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import json
import math
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from fxcache.errors import OptionError

__all__ = [
    "PRESETS",
    "Check",
    "FrozenMapping",
    "choice",
    "dtype",
    "finite_numbers",
    "integer",
    "integers",
    "mask",
    "names",
    "nearest",
    "number",
    "optional_switch",
    "path",
    "plain_mapping",
    "switch",
]

PRESETS = ("slow", "medium", "fast", "ultra")
"""Masks of steps that have a name, from many computed steps to few."""

Check = Callable[[str, Any], Any]


class FrozenMapping(Mapping[str, Any]):
    """An immutable, hashable mapping of plain values; reading a value gives a copy."""

    def __init__(self, items: Mapping[str, Any]) -> None:
        self._items = copy.deepcopy(dict(items))
        self._text = json.dumps(self._items, sort_keys=True)

    def __getitem__(self, key: str) -> Any:
        return copy.deepcopy(self._items[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(self._text)

    def __eq__(self, other: object) -> bool:
        return dict(self._items) == dict(other) if isinstance(other, Mapping) else NotImplemented

    def __repr__(self) -> str:
        return repr(self._items)


def nearest(word: object, valid: Iterable[str]) -> str:
    """Return the end of an error sentence: the nearest valid word, or all of them when none is near."""
    valid = list(valid)
    close = difflib.get_close_matches(str(word), valid, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(valid)}"


def integer(low: int, high: int | None = None, *, optional: bool = False) -> Check:
    """Check for an integer from ``low`` to ``high`` (None: no end); with ``optional``, None is allowed too."""
    span = f">= {low}" if high is None else f"from {low} to {high}"
    expected = f"{'None or ' if optional else ''}an integer {span}"

    def check(name: str, value: Any) -> int | None:
        if value is None and optional:
            return None
        plain = _scalar(value)
        wrong = isinstance(plain, bool) or not isinstance(plain, numbers.Integral)
        if wrong or plain < low or (high is not None and plain > high):
            raise OptionError.of(name, value, expected)
        return int(plain)

    return check


def number(
    *, above: float = -math.inf, at_least: float = -math.inf, at_most: float = math.inf, optional: bool = False
) -> Check:
    """Check for a finite number, with an open (``above``) or closed (``at_least``) lower end, and an upper one."""
    limit = f" > {above:g}" if above > -math.inf else f" >= {at_least:g}" if at_least > -math.inf else ""
    limit += f" and <= {at_most:g}" if at_most < math.inf else ""
    expected = f"{'None or ' if optional else ''}a finite number{limit}"

    def check(name: str, value: Any) -> float | None:
        if value is None and optional:
            return None
        plain = _scalar(value)
        if isinstance(plain, bool) or not isinstance(plain, numbers.Real):
            raise OptionError.of(name, value, expected)
        try:
            result = float(plain)
        except OverflowError:
            result = math.inf
        if not (math.isfinite(result) and result > above and at_least <= result <= at_most):
            raise OptionError.of(name, value, expected)
        return result

    return check


def choice(*allowed: str | None, why: str = "") -> Check:
    """Check for one of the given words; ``why`` is appended to the error sentence."""
    listed = " or ".join(repr(word) for word in allowed)
    words = [word for word in allowed if word is not None]

    def check(name: str, value: Any) -> str | None:
        if isinstance(value, str | None) and value in allowed:
            return value
        close = difflib.get_close_matches(str(value), words, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise OptionError.of(name, value, f"{listed}{hint}{why}")

    return check


def names(name: str, value: Any) -> tuple[str, ...]:
    """Check for a sequence of different, non-empty strings."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        result = tuple(value)
        if all(isinstance(entry, str) and entry for entry in result) and len(set(result)) == len(result):
            return result
    raise OptionError.of(name, value, "a sequence of different non-empty names, such as ['blocks']")


def integers(low: int) -> Check:
    """Check for a sequence of different integers >= ``low``; they leave sorted."""

    def check(name: str, value: Any) -> tuple[int, ...]:
        expected = f"a sequence of different integers >= {low}, such as [0, 3]"
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise OptionError.of(name, value, expected)
        plain = [_scalar(entry) for entry in value]
        good = all(isinstance(entry, numbers.Integral) and not isinstance(entry, bool) for entry in plain)
        if not good or any(entry < low for entry in plain) or len(set(plain)) < len(plain):
            raise OptionError.of(name, value, expected)
        return tuple(sorted(map(int, plain)))

    return check


def switch(name: str, value: Any) -> bool:
    """Check for True or False."""
    plain = _scalar(value)
    if isinstance(plain, bool):
        return plain
    raise OptionError.of(name, value, "True or False")


def optional_switch(name: str, value: Any) -> bool | None:
    """Check for None, True or False."""
    plain = _scalar(value)
    if plain is None or isinstance(plain, bool):
        return plain
    raise OptionError.of(name, value, "None, True or False")


def finite_numbers(least: int, most: int | None = None, *, above: float = -math.inf) -> Check:
    """Check for a sequence of ``least`` to ``most`` numbers; they leave as a tuple of floats."""
    count = f"{least} to {most}" if most is not None else f"{least} or more" if least else "any number of"
    expected = f"{count} finite numbers{f' > {above:g}' if above > -math.inf else ''} in a sequence"
    single = number(above=above)

    def check(name: str, value: Any) -> tuple[float, ...]:
        entries = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(entries, Sequence) and not isinstance(entries, str | bytes):
            with contextlib.suppress(OptionError):
                result = tuple(single(name, entry) for entry in entries)
                if len(result) >= least and (most is None or len(result) <= most):
                    return result
        raise OptionError.of(name, value, expected)

    return check


def mask(name: str, value: Any) -> tuple[int, ...] | str | None:
    """Check for None, a preset, or zeros and ones as a string or a sequence; these leave as a tuple of integers."""
    if value is None or (isinstance(value, str) and value in PRESETS):
        return value
    if isinstance(value, str | Sequence):
        digits = [{"0": 0, "1": 1, 0: 0, 1: 1}.get(entry) for entry in value if isinstance(entry, str | int)]
        if digits and len(digits) == len(value) and None not in digits:
            return tuple(digit for digit in digits if digit is not None)
    digits_wanted = "one 0 (reuse) or 1 (compute) per step, such as '1101001' or [1, 1, 0]"
    raise OptionError.of(name, value, f"None, {', '.join(map(repr, PRESETS))}, or {digits_wanted}")


def dtype(name: str, value: Any) -> str | None:
    """Check for None or a floating-point dtype, by name or as torch has it; it leaves by name."""
    if value is None:
        return None
    word = str(value).removeprefix("torch.")
    if word in ("float32", "bfloat16", "float16"):
        return word
    raise OptionError.of(name, value, "None, 'float32', 'bfloat16' or 'float16'")


def path(name: str, value: Any) -> str | None:
    """Check for None or the path of a folder, which need not exist yet."""
    if value is None:
        return None
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        if isinstance(text, str) and text:
            return text
    raise OptionError.of(name, value, "None or the path of a folder")


def plain_mapping(name: str, value: Any) -> FrozenMapping:
    """Check for a mapping from strings to None, bool, int, float, str, or lists and mappings of these."""
    if isinstance(value, FrozenMapping):
        return value
    if not isinstance(value, Mapping):
        raise OptionError.of(name, value, "a mapping")
    for key, entry in value.items():
        if not isinstance(key, str):
            raise OptionError.of(name, value, f"string keys, found {key!r}")
        if not _is_plain(entry):
            allowed = "None, bool, int, float, str, or a list or mapping of these"
            raise OptionError.of(f"{name}[{key!r}]", entry, allowed)
    return FrozenMapping(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(entry) for key, entry in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _scalar(value: Any) -> Any:
    """Unwrap a numpy scalar or a tensor without dimensions; anything else is returned as it is."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        try:
            return value.item()
        except (NotImplementedError, RuntimeError):  # a tensor without data (meta, fake)
            return value
    return value
