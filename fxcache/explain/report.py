"""What `explain` returns: numbers and names in a frozen object that prints as text and turns into JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from fxcache.errors import Refusal

_RATES = (25, 50, 75)
_WIDTH = 112
_MARGIN = 13
_SHOWN = 6


@dataclass(frozen=True)
class StreamNote:
    """One tensor that is kept between steps."""

    name: str
    """Node of the graph that it comes from."""
    shape: str
    """Dynamic sizes as expressions."""
    dtype: str
    kind: str
    """``residual``: the difference to what entered the middle; ``value`` or, of the indicator, ``raw``: as it is."""
    bytes: int
    entries: int = 1
    """Steps of which it is kept."""

    def __str__(self) -> str:
        times = f"{self.entries} x " if self.entries > 1 else ""
        return f"{times}{self.kind} {self.shape} {self.dtype}, {_size(self.bytes)}"


@dataclass(frozen=True)
class RegionFlops:
    """Floating point operations of one step, by region."""

    prefix: int
    """In front of the trunk, and everything else that is computed on every step in front of the branch."""
    first: int
    """The first blocks (Fn)."""
    middle: int
    """What a reused step skips."""
    last: int
    """The last blocks (Bn)."""
    suffix: int
    """Behind the trunk."""
    outside: int = 0
    """In other graphs of the same call."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.prefix + self.first + self.middle + self.last + self.suffix + self.outside


@dataclass(frozen=True)
class GraphNote:
    """One graph of the call."""

    operators: int
    flops: int
    cached: bool
    refusal: Refusal | None
    ends: str | None
    """Why another graph follows."""


@dataclass(frozen=True)
class Explanation:
    """What fxcache would do with one call of a module; bytes and sizes are those of this call."""

    model: str
    trunk: str | None = None
    blocks: tuple[str, ...] = ()
    """All blocks of the trunk, in the order in which they run."""
    first_blocks: int = 0
    """Fn: blocks at the start that always run."""
    last_blocks: int = 0
    """Bn: blocks at the end that always run."""
    units: tuple[tuple[str, ...], ...] = ()
    """With `method="dbprune"`: the blocks that are decided about for themselves, alone or in groups."""
    side_blocks: tuple[str, ...] = ()
    """Blocks of other stacks that run between those of the trunk."""
    streams: tuple[StreamNote, ...] = ()
    """What is kept of a computed step."""
    hoisted: tuple[str, ...] = ()
    """Values from the middle's span that need no block: they are computed on every step."""
    indicator: StreamNote | None = None
    """What is compared with the last computed step; its bytes are those of the kept reference."""
    flops: RegionFlops | None = None
    total_flops: int = 0
    uncounted: tuple[str, ...] = ()
    """Operators of other packages, whose work is not known and not in these numbers."""
    state_bytes: int = 0
    """Per context, that is per branch of one generation."""
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Argument names by role: latents, timestep, conditioning, other."""
    graphs: tuple[GraphNote, ...] = ()
    broken: str | None = None
    """Where tracing met something that splits the call into several graphs."""
    refusal: Refusal | None = None
    """Why the graph would be left as it is; None when it would be cached."""

    @property
    def reused_cost(self) -> float:
        """Work of a reused step as a part of a full step: 1 when nothing can be skipped."""
        if self.flops is None or not self.flops.total:
            return 1.0
        return 1.0 - self.flops.middle / self.flops.total

    def speedup(self, rate: float) -> float:
        """Speedup if this part of the steps is reused (0 to 1), from operation counts alone."""
        return 1.0 / (1.0 - rate * (1.0 - self.reused_cost))

    def to_dict(self) -> dict[str, Any]:
        """Return everything in types that JSON has."""
        plain: dict[str, Any] = _plain(asdict(self))
        plain["reused_cost"] = self.reused_cost
        plain["speedup"] = {str(rate): self.speedup(rate / 100) for rate in _RATES}
        return plain

    def __str__(self) -> str:
        return "\n".join(line.rstrip() for line in self._lines())

    def _lines(self) -> Iterator[str]:
        if self.refusal is not None:
            yield f"{self.model}: runs uncached"
            yield from _entry("reason", str(self.refusal))
        else:
            yield f"{self.model}: can be cached"
            yield from self._region_lines()
        for role, names in self.inputs.items():
            if names:
                yield from _entry(role, ", ".join(names))
        if len(self.graphs) != 1 or self.broken:
            yield from self._graph_lines()

    def _region_lines(self) -> Iterator[str]:
        yield from _entry("trunk", f"{self.trunk} ({len(self.blocks)} blocks)")
        end = len(self.blocks) - self.last_blocks
        yield from _entry("first", _blocks(self.blocks[: self.first_blocks]))
        yield from _entry("middle", _blocks(self.blocks[self.first_blocks : end]))
        if self.units:
            yield from self._unit_lines(end)
        yield from _entry("last", _blocks(self.blocks[end:]))
        if self.side_blocks:
            yield from _entry("beside", _blocks(self.side_blocks))
        yield from _entry("indicator", str(self.indicator or "none: the host alone decides"))
        yield from _table("cached", [f"{stream.name}: {stream}" for stream in self.streams])
        if self.hoisted:
            yield from _table("hoisted", self.hoisted)
        if self.flops is not None:
            parts = {name: flops for name, flops in asdict(self.flops).items() if flops or name != "outside"}
            unit, word = _unit(self.flops.total)
            whole = self.flops.total
            rows = [(name, f"{n / unit:.3f}", f"{_percent(n, whole):.1f} %") for name, n in parts.items()]
            rows.append(("full step", f"{self.flops.total / unit:.3f}", ""))
            widths = [max(len(row[column]) for row in rows) for column in range(3)]
            for i, (name, count, share) in enumerate(rows):
                head = word if i == 0 else ""
                yield f"  {head:<{_MARGIN}}{name:<{widths[0]}}  {count:>{widths[1]}}  {share:>{widths[2]}}"
        if self.uncounted:
            yield from _entry("not counted", ", ".join(self.uncounted))
        yield from _entry("reused step", f"{100 * self.reused_cost:.1f} % of a full step")
        rates = ", ".join(f"{self.speedup(rate / 100):.2f}x at {rate} % reuse" for rate in _RATES)
        yield from _entry("speedup", f"{rates}, at most")
        yield from _entry("state", f"{_size(self.state_bytes)} per context")

    def _unit_lines(self, end: int) -> Iterator[str]:
        sizes = [len(unit) for unit in self.units]
        one = "1 block" if max(sizes) == 1 else f"up to {max(sizes)} blocks"
        yield from _entry("decided", f"{len(sizes)} times, about {one} each")
        taken = {label for unit in self.units for label in unit}
        exempt = [label for label in self.blocks[self.first_blocks : end] if label not in taken]
        if exempt:
            yield from _entry("exempt", ", ".join(exempt))

    def _graph_lines(self) -> Iterator[str]:
        yield from _entry("graphs", f"{len(self.graphs)}; tracing stopped first at: {self.broken}")
        for i, graph in list(enumerate(self.graphs))[:_SHOWN]:
            fate = "cached" if graph.cached else "uncached"
            share = _percent(graph.flops, self.total_flops)
            text = f"{i}: {graph.operators} operators, {share:.1f} % of the work, {fate}"
            yield from _entry("", text + (f", ends at: {graph.ends}" if graph.ends else ""))


def _entry(name: str, text: str) -> list[str]:
    indent = " " * (_MARGIN + 2)
    lines = textwrap.wrap(text, _WIDTH, subsequent_indent=indent, initial_indent=indent, break_long_words=False)
    lines = lines or [indent]
    return [f"  {name:<{_MARGIN}}" + lines[0][len(indent) :], *lines[1:]]


def _table(name: str, texts: Sequence[str]) -> Iterator[str]:
    shown = list(texts[:_SHOWN])
    if len(texts) > _SHOWN:
        shown.append(f"and {len(texts) - _SHOWN} more")
    for i, text in enumerate(shown):
        yield from _entry(name if i == 0 else "", text)


def _blocks(labels: Sequence[str]) -> str:
    """Name blocks in short: ``blocks.0-7 (8)``."""
    parts = []
    for stack, group in groupby(labels, key=lambda label: label.rpartition(".")[0]):
        indices = [label.rpartition(".")[2] for label in group]
        parts.append(f"{stack}.{indices[0]}" + (f"-{indices[-1]} ({len(indices)})" if len(indices) > 1 else ""))
    return ", ".join(parts) or "none"


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0


def _unit(flops: int) -> tuple[float, str]:
    for power, word in ((12, "TFLOP"), (9, "GFLOP"), (6, "MFLOP")):
        if flops >= 10**power:
            return 10.0**power, word
    return 1e3, "kFLOP"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
