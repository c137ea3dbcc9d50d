"""Which picture is compared with which, and what two pictures must share before they are."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from fxcache.metrics.errors import InputError, require
from fxcache.metrics.frames import Frame
from fxcache.metrics.media import Entry, Media

__all__ = ["frames", "pairs", "shown"]

_Item = TypeVar("_Item")
_NAMED = 3
"""Missing names in one error; of more, the number."""


def shown(items: Iterable[_Item], metric: str, total: int | None, progress: bool | None) -> Iterator[_Item]:
    """Pass the items through, with a progress bar on stderr; None shows it only on a terminal."""
    tqdm = require("tqdm", "tqdm", "a progress bar").tqdm
    hidden = None if progress is None else not progress
    yield from tqdm(items, desc=metric, total=total, disable=hidden, file=sys.stderr, leave=False)


def frames(media: Media) -> Iterator[Frame]:
    """Decode everything behind one argument."""
    for entry in media.entries:
        yield from entry.frames()


def pairs(first: Media, second: Media) -> Iterator[tuple[Frame, Frame]]:
    """Decode two arguments side by side; raises InputError where they do not fit, naming both values.

    Two folders are paired by the stems of the names, everything else by position.
    """
    _check_entries(first, second)
    before: tuple[Frame, Frame] | None = None
    for entries in zip(first.entries, second.entries, strict=True):
        for pair in _paired_frames(*entries):
            _check_pair(*pair)
            if before is not None and before[0].data_range != pair[0].data_range:
                raise InputError(
                    f"{before[0].name} is {before[0].format} and {pair[0].name} {pair[0].format}: "
                    "expected one range of values in all pairs"
                )
            before = pair
            yield pair


def _check_entries(first: Media, second: Media) -> None:
    counts = [f"{media.label} holds {len(media.entries)}" for media in (first, second)]
    different = len(first.entries) != len(second.entries)
    if first.by_name and second.by_name:
        stems = [{_stem(entry) for entry in media.entries} for media in (first, second)]
        only = [_listed(stems[0] - stems[1], first.label), _listed(stems[1] - stems[0], second.label)]
        if any(only):
            held = f"{counts[0]} and {counts[1]} files: " if different else ""
            raise InputError(
                f"{held}{' and '.join(filter(None, only))}: expected the same names in both, whatever their endings"
            )
    elif different:
        raise InputError(f"{counts[0]} and {counts[1]}: expected the same number of pictures or videos")


def _stem(entry: Entry) -> str:
    return entry.name if entry.path is None else entry.path.stem


def _listed(stems: set[str], label: str) -> str:
    if not stems:
        return ""
    more = f" and {len(stems) - _NAMED} more" if len(stems) > _NAMED else ""
    return f"only {label} has {', '.join(sorted(stems)[:_NAMED])}{more}"


def _paired_frames(first: Entry, second: Entry) -> Iterator[tuple[Frame, Frame]]:
    decoded = first.frames(), second.frames()
    count = 0
    while True:
        one, other = (next(each, None) for each in decoded)
        if one is None or other is None:
            break
        count += 1
        yield one, other
    if one is not None or other is not None:
        # the longer one is decoded to its end, so that both numbers can be said
        counts = [count + (one is not None), count + (other is not None)]
        for place, rest in enumerate(decoded):
            counts[place] += sum(1 for _ in rest)
        raise InputError(
            f"{first.name} has {counts[0]} frames and {second.name} {counts[1]}: expected the same number of frames"
        )


def _check_pair(one: Frame, other: Frame) -> None:
    if one.format != other.format:
        raise InputError(f"{one.name} is {one.format} and {other.name} {other.format}: expected the same format")
    if one.size != other.size:
        raise InputError(
            f"{one.name} is {one.size} and {other.name} {other.size} (width x height): expected the same size"
        )
