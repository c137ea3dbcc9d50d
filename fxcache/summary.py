"""What the cache has done: a typed summary, printed as a table, drawn as a picture. No device is touched for it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from fxcache.runtime.interface import Reason
from fxcache.runtime.records import ContextRecord, ModelRecord

__all__ = ["ContextSummary", "Summary", "summarize"]

_NO_STEP = frozenset({Reason.REPEATED, Reason.BUSY, Reason.TOO_LARGE, Reason.UNATTRIBUTED})
_SIGNS = {Reason.REUSED.value: ".", Reason.PARTLY.value: "m"}
_COLUMNS = ("model", "generation", "branch", "shape", "steps", "computed", "reused", "difference", "state", "speedup")
_NUMBERS = frozenset(_COLUMNS[4:])


@dataclass(frozen=True)
class ContextSummary:
    """One branch of one generation."""

    model: str
    """Component of the pipeline, or class of the module."""
    generation: str
    branch: str
    segment: int
    """How often the time had started again before, where nobody said that a generation ended."""
    shape: tuple[int, ...]
    """Of the latents."""
    steps: int
    computed: int
    reused: int
    """Steps of which something was skipped."""
    pruned_ratio: float | None
    """With `method="dbprune"`: share of the blocks that may be skipped that was, over all steps."""
    reasons: dict[str, int]
    """Calls per reason; calls that were computed outside of the count of steps (repeated, busy) are here as well."""
    differences: tuple[float | None, ...]
    """Per step, the relative difference that was compared with the threshold, where one was."""
    outcomes: tuple[str, ...]
    """Per step, the reason."""
    threshold: float
    state_bytes: int
    """Held now; 0 for a context that has ended."""
    estimated_speedup: float | None
    """From operation counts alone: work of all steps computed, over the work done."""
    live: bool

    @property
    def decisions(self) -> str:
        """The steps in a word: ``C`` computed, ``.`` reused, ``m`` partly reused."""
        return "".join(_SIGNS.get(outcome, "C") for outcome in self.outcomes)


@dataclass(frozen=True)
class Summary:
    """All contexts of a pipeline or a module, in the order in which they began; ended ones first."""

    contexts: tuple[ContextSummary, ...]
    refused: dict[str, int]
    """Calls that belong to no context, per reason."""

    @property
    def steps(self) -> int:
        """Steps of all contexts."""
        return sum(context.steps for context in self.contexts)

    @property
    def reused(self) -> int:
        """Reused steps of all contexts."""
        return sum(context.reused for context in self.contexts)

    @property
    def computed(self) -> int:
        """Computed steps of all contexts."""
        return self.steps - self.reused

    @property
    def state_bytes(self) -> int:
        """Bytes that all contexts hold now."""
        return sum(context.state_bytes for context in self.contexts)

    @property
    def estimated_speedup(self) -> float | None:
        """Over all contexts whose work is known, from operation counts alone."""
        known = [(c.steps, c.steps / c.estimated_speedup) for c in self.contexts if c.estimated_speedup]
        return sum(before for before, _ in known) / sum(after for _, after in known) if known else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything in types that JSON has."""
        totals = {
            "steps": self.steps,
            "computed": self.computed,
            "reused": self.reused,
            "state_bytes": self.state_bytes,
            "estimated_speedup": self.estimated_speedup,
            "refused": dict(self.refused),
        }
        return {**totals, "contexts": [_plain(asdict(context)) for context in self.contexts]}

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw, per context, the difference of every step against the threshold, with the decisions, into a file.

        Needs matplotlib.
        """
        from fxcache.plot import plot_summary

        plot_summary(self, path)

    def __str__(self) -> str:
        if not self.contexts and not self.refused:
            return "fxcache: no cached calls yet"
        rows = [_COLUMNS, *map(_row, self.contexts), _total(self)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
        lines = [_aligned(row, widths) for row in rows]
        rule = "-" * len(lines[0])
        lines = [lines[0], rule, *lines[1:-1], rule, lines[-1], ""]
        lines += [f"{_name(context)}: {_counts(context.reasons)}{_pruned(context)}" for context in self.contexts]
        if self.refused:
            lines.append(f"outside any context: {_counts(self.refused)}")
        return "\n".join(line.rstrip() for line in lines)


def summarize(models: Iterable[tuple[str, ModelRecord]]) -> Summary:
    """Build the summary from the records of the runtime, each with the label of its model."""
    contexts: list[ContextSummary] = []
    refused: dict[str, int] = {}
    for label, model in models:
        contexts += [_context(label, record) for record in model.contexts]
        for reason, count in model.refused.items():
            refused[reason.value] = refused.get(reason.value, 0) + count
    return Summary(tuple(contexts), refused)


def _context(label: str, record: ContextRecord) -> ContextSummary:
    steps = sum(count for reason, count in record.reasons.items() if reason not in _NO_STEP)
    reused = record.reasons.get(Reason.REUSED, 0) + record.reasons.get(Reason.PARTLY, 0)
    work = steps * record.total_flops
    done = work - record.saved_flops
    return ContextSummary(
        model=label,
        generation=record.generation,
        branch=record.branch,
        segment=record.segment,
        shape=record.shape,
        steps=steps,
        computed=steps - reused,
        reused=reused,
        pruned_ratio=record.pruned_blocks / (steps * record.blocks) if steps * record.blocks else None,
        reasons={reason.value: count for reason, count in record.reasons.items()},
        differences=tuple(step.difference for step in record.steps),
        outcomes=tuple(step.reason.value for step in record.steps),
        threshold=record.threshold,
        state_bytes=record.nbytes,
        estimated_speedup=work / done if done > 0 else None,
        live=record.live,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    # JSON has no infinity and no NaN
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _row(context: ContextSummary) -> tuple[str, ...]:
    compared = [difference for difference in context.differences if difference is not None]
    middle = f"{statistics.median(compared):.3f} (max {max(compared):.3f})" if compared else "-"
    return (
        context.model,
        context.generation + (f" #{context.segment + 1}" if context.segment else ""),
        context.branch,
        "x".join(map(str, context.shape)) or "-",
        str(context.steps),
        str(context.computed),
        str(context.reused),
        middle,
        _size(context.state_bytes),
        _times(context.estimated_speedup),
    )


def _total(summary: Summary) -> tuple[str, ...]:
    counts = (summary.steps, summary.computed, summary.reused)
    ends = ("", _size(summary.state_bytes), _times(summary.estimated_speedup))
    return ("total", "", "", "", *map(str, counts), *ends)


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    cells = (
        text.rjust(width) if column in _NUMBERS else text.ljust(width)
        for text, width, column in zip(row, widths, _COLUMNS, strict=True)
    )
    return "  ".join(cells)


def _name(context: ContextSummary) -> str:
    return f"{context.model}, {_row(context)[1]}, {context.branch}"


def _counts(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))


def _pruned(context: ContextSummary) -> str:
    ratio = context.pruned_ratio
    return "" if ratio is None else f"; {100 * ratio:.0f} % of the blocks that may be skipped were"


def _times(factor: float | None) -> str:
    return "-" if factor is None else f"{factor:.2f}x"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
