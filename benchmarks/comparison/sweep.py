"""Quality over speed: every contestant with every setting of its grid, beside the uncached models.

Contestants are opened a few at a time. In every round each of them draws the same pictures with the setting whose turn
it is, and so do plain Inductor and plain eager, in an order that changes from round to round.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.comparison.contestants import Contestant, chosen
from benchmarks.comparison.costs import Costs
from benchmarks.comparison.fronts import UNCACHED
from benchmarks.comparison.grids import Frame
from benchmarks.comparison.measure import Drawn
from benchmarks.comparison.seats import Examined, Prepared, Refused, Seat
from benchmarks.report import Spread, paired_ratio
from benchmarks.schedules import Schedule

BASES = ("inductor", "eager")
"""Uncached models that are drawn in every round; the first one gives the pictures to come close to."""
ENOUGH = 1000
"""Pictures without which a distance of distributions is not reported."""
ATTEMPTS = 3
"""How often a round is drawn in hope of one in which nothing is compiled."""
Place = Callable[[Contestant], Seat]


@dataclass(frozen=True)
class Plan:
    """How much is drawn, and how."""

    samples: int
    rounds: int
    frame: Frame
    abreast: int
    """Contestants that share the rounds of the uncached models."""
    apart: bool = False
    """Whether every setting has a contestant of its own: more memory, and all of them in the same rounds."""
    examine: bool = True
    """Whether to look at memory, in a generation more per setting."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.samples < self.rounds or self.samples % self.rounds:
            raise ValueError(f"--samples={self.samples}, --rounds={self.rounds}: expected a multiple of the rounds")
        if self.abreast < 1:
            raise ValueError(f"--abreast={self.abreast}: expected at least 1")

    @property
    def count(self) -> int:
        """Pictures per round."""
        return self.samples // self.rounds


@dataclass(eq=False)
class Row:
    """One contestant with one setting, and what was measured of it."""

    contestant: Contestant
    schedule: Schedule
    refusal: str | None = None
    prepared: Prepared | None = None
    examined: Examined | None = None
    recompiles: int = 0
    drawn: list[Drawn] = field(default_factory=list)
    beside: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of the uncached models in the same rounds."""


def rows_to_measure(contestants: Sequence[Contestant], frame: Frame) -> list[Row]:
    """A row per contestant and setting; the uncached ones that are compared with stand by themselves."""
    rows = []
    for contestant in contestants:
        if contestant.grid is not None:
            rows += [Row(contestant, contestant.fit(schedule)) for schedule in contestant.grid(frame)]
        elif contestant.name not in BASES:
            rows.append(Row(contestant, Schedule("steps", frame.steps, words=UNCACHED)))
    return rows


def rows_again(found: Sequence[dict[str, Any]]) -> list[Row]:
    """Rows of a report, to be measured once more."""
    return [Row(*chosen([row["method"]], ()), schedule_of(row)) for row in found]


def schedule_of(row: dict[str, Any]) -> Schedule:
    """The setting of a row of a report."""
    return Schedule(**{each.name: row[each.name] for each in dataclasses.fields(Schedule)})


class Sweep:
    """The rounds of all rows; `done` is called with the rows of each group when they are measured."""

    def __init__(
        self, plan: Plan, bases: Sequence[Contestant], place: Place, done: Callable[[list[Row]], None]
    ) -> None:
        self._plan, self._place, self._done = plan, place, done
        self._order = random.Random(0)
        full = Schedule("steps", plan.frame.steps, words=UNCACHED)
        self.bases = {base.name: Row(base, full) for base in bases}
        self._seats: dict[str, Seat] = {}

    def run(self, rows: Sequence[Row]) -> None:
        """Measure everything; uncached models stay open, the others only while their rows are measured."""
        try:
            for row in self.bases.values():
                self._open(row, self._place(row.contestant), "")
                if row.refusal is not None:
                    raise RuntimeError(f"{row.contestant.name}: {row.refusal}")
            for heat in _heats(rows, self._plan):
                self._run_heat(heat)
        finally:
            for seat in self._seats.values():
                seat.close()

    def _run_heat(self, heat: list[list[Row]]) -> None:
        """Rows of one family per contestant: the first settings of all side by side, then the second ones."""
        seats = [self._place(rows[0].contestant) for rows in heat]
        try:
            starting = tqdm(heat, desc="compiling", unit="contestant", leave=False)
            for rows, seat in zip(starting, seats, strict=True):
                self._prepare(rows, seat)
            for abreast in itertools.zip_longest(*heat):
                here = [(row, seat) for row, seat in zip(abreast, seats, strict=True) if row is not None]
                self._measure(here)
                self._done([row for row, _ in here])
        finally:
            for seat in seats:
                seat.close()

    def _prepare(self, rows: list[Row], seat: Seat) -> None:
        self._open(rows[0], seat, rows[0].contestant.name)
        for row in rows[1:]:
            row.prepared, row.refusal = rows[0].prepared, rows[0].refusal

    def _open(self, row: Row, seat: Seat, name: str) -> None:
        try:
            row.prepared = seat.ask("prepare", row.schedule, self._plan.count)
        except Refused as refusal:
            row.refusal = str(refusal)
        if not name:
            self._seats[row.contestant.name] = seat

    def _measure(self, rows: Sequence[tuple[Row, Seat]]) -> None:
        plan = self._plan
        bases = [(row, self._seats[name]) for name, row in self.bases.items()]
        for number in tqdm(range(plan.rounds), desc="drawing", unit="round", leave=False):
            taking_part = [(row, seat) for row, seat in [*bases, *rows] if row.refusal is None]
            seconds: dict[str, float] = {}
            for row, seat in self._order.sample(taking_part, len(taking_part)):
                drawn = self._draw(row, seat, number)
                if drawn is not None and row.contestant.name in self.bases:
                    seconds[row.contestant.name] = drawn.seconds
            for row, _ in rows:
                for name, value in seconds.items():
                    row.beside.setdefault(name, []).append(value)
        for row, seat in [*bases, *rows]:
            # whose decisions do not tell what it skips is looked at in any case
            if row.refusal is None and row.examined is None and (plan.examine or row.contestant.skips_inside):
                self._examine(row, seat)

    def _draw(self, row: Row, seat: Seat, number: int) -> Drawn | None:
        # the pictures of an uncached model are the same in every group
        keep = row.contestant.name not in self.bases or number >= len(row.drawn)
        try:
            for _ in range(ATTEMPTS):
                drawn: Drawn
                drawn, graphs = seat.ask("draw", row.schedule, number, self._plan.count, keep)
                row.recompiles += graphs
                if not graphs:
                    break
        except Refused as refusal:
            row.refusal = str(refusal)
            return None
        row.drawn.append(drawn)
        return drawn

    def _examine(self, row: Row, seat: Seat) -> None:
        try:
            row.examined = seat.ask("examine", row.schedule, self._plan.count)
        except Refused as refusal:
            row.refusal = str(refusal)


def _heats(rows: Sequence[Row], plan: Plan) -> Iterator[list[list[Row]]]:
    """Rows by contestant and family, as many groups at a time as run abreast."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row if plan.apart else (row.contestant.name, row.schedule.family), []).append(row)
    for begin in range(0, len(groups), plan.abreast):
        yield list(groups.values())[begin : begin + plan.abreast]


def report_row(row: Row, bases: dict[str, Row], reference: Any, plan: Plan, costs: Costs) -> dict[str, Any]:
    """Everything about one row: what was saved, how long it took, how good the pictures are."""
    memory, prepared = row.examined and row.examined.memory, row.prepared
    found: dict[str, Any] = {
        "method": row.contestant.name,
        "group": row.contestant.group,
        "setting": row.schedule.words,
        **dataclasses.asdict(row.schedule),
        "refusal": row.refusal,
        "compile_s": prepared and prepared.compile_s,
        "graph_breaks": prepared and prepared.compiled.graph_breaks,
        "recompiles": prepared and prepared.compiled.recompiles + row.recompiles,
        "peak_bytes": memory and memory.peak_bytes,
        "state_bytes": memory and memory.state_bytes,
    }
    rounds = row.drawn[: plan.rounds]
    if row.refusal is not None or len(rounds) < plan.rounds:
        return found
    is_base = row.contestant.name in bases
    seconds = [one.seconds for one in row.drawn]
    letters = [branch for one in rounds for branch in one.decisions]
    flops = _flops(row, rounds, costs) / len(rounds)
    found |= {
        "decisions": rounds[0].decisions,
        "computed_share": sum(each.count("C") for each in letters) / sum(map(len, letters)),
        "reused_share": sum(each.count(".") + each.count("m") for each in letters) / sum(map(len, letters)),
        "flops": flops,
        "factor": plan.frame.steps * len(rounds[0].decisions) * costs.call / flops,
        "image_s": Spread.of(seconds).scaled(1 / plan.count),
        "round_s": seconds,
    }
    for name, base in bases.items():
        beside = [one.seconds for one in base.drawn] if is_base else row.beside[name]
        found[f"speedup_to_{name}"] = paired_ratio(beside, seconds)
    found["host_syncs"] = _syncs(row.examined)
    found |= dataclasses.asdict(reference.quality(pictures_of(row, plan)))
    if plan.samples < ENOUGH:
        found |= {name: None for name in found if name.startswith("frechet")}
    return found


def pictures_of(row: Row, plan: Plan) -> Tensor:
    """All pictures of a row, in the order of the rounds."""
    return torch.cat([one.pictures for one in row.drawn[: plan.rounds] if one.pictures is not None])


def _flops(row: Row, rounds: Sequence[Drawn], costs: Costs) -> float:
    counted = row.examined and row.examined.flops
    if counted:
        letters = "".join(branch for one in rounds for branch in one.decisions)
        return sum(counted.get(letter, costs.call) * letters.count(letter) for letter in sorted(set(letters)))
    return float(sum(costs.of(row.schedule, one.decisions, one.skipped_blocks) for one in rounds))


def _syncs(examined: Examined | None) -> float | None:
    """Waits of the host in a generation, but those of its first step, which sets it up."""
    return None if examined is None or examined.gpu is None else sum(step.host_syncs for step in examined.gpu[0][1:])
