"""Speed at fixed schedules: every contestant computes exactly the steps of a mask, round by round in turns.

One contestant after the other is compiled, all around the same weights; then every mask is drawn in rounds, in an
order that changes from round to round. What pictures look like means nothing here: it is made for random weights.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.comparison.contestants import Contestant
from benchmarks.comparison.costs import Costs
from benchmarks.comparison.measure import Drawn
from benchmarks.comparison.seats import Examined, Prepared, Refused, Seat
from benchmarks.report import Spread, paired_ratio
from benchmarks.schedules import Schedule

BASES = ("inductor", "eager")
"""Uncached models that others are compared with, where they take part."""
SHORT = Schedule("mask", 6, mask="110101")
"""What everybody is compiled with: every kind of step, some of them twice."""

ATTEMPTS = 3
"""How often a round is drawn in hope of one in which nothing is compiled."""


@dataclass(eq=False)
class Competitor:
    """A contestant in its seat, and what was measured of it."""

    contestant: Contestant
    seat: Seat | None = None
    refusal: str | None = None
    prepared: Prepared | None = None
    examined: Examined | None = None
    drawn: dict[str, list[Drawn]] = field(default_factory=dict)
    """Per preset of masks, one generation per round."""
    recompiles: dict[str, int] = field(default_factory=dict)
    """Per preset, graphs compiled while its rounds were drawn."""

    @property
    def name(self) -> str:
        """Of the contestant."""
        return self.contestant.name


def begin(competitor: Competitor, count: int) -> None:
    """Let a contestant compile, in a process of its own without waiting for it."""
    assert competitor.seat is not None
    try:
        competitor.seat.begin("prepare", competitor.contestant.fit(SHORT), count)
    except Refused as refusal:
        competitor.refusal = str(refusal)


def prepare(competitor: Competitor, count: int, examines: bool) -> None:
    """Wait until it has compiled, and look at its memory; where it raises something, that is why it takes no part."""
    assert competitor.seat is not None
    if competitor.refusal is not None:
        return
    try:
        competitor.prepared = competitor.seat.answer()
        if examines:
            competitor.examined = competitor.seat.ask("examine", competitor.contestant.fit(SHORT), count)
    except Refused as refusal:
        competitor.refusal = str(refusal)


def compete(
    competitors: Sequence[Competitor],
    preset: str,
    schedule: Schedule,
    rounds: int,
    count: int,
    done: Callable[[], None],
) -> None:
    """Draw every round with all who are ready, in an order of its own; `done` is called after each round."""
    order = random.Random(0)
    for number in range(rounds):
        ready = [each for each in competitors if each.prepared is not None and each.refusal is None]
        for each in order.sample(ready, len(ready)):
            assert each.seat is not None
            try:
                drawn = _steady(each, preset, schedule, number, count)
            except Refused as refusal:
                each.refusal = str(refusal)
                continue
            each.drawn.setdefault(preset, []).append(drawn)
        done()


def _steady(each: Competitor, preset: str, schedule: Schedule, number: int, count: int) -> Drawn:
    """Draw a round; once more where something had to be compiled on the way, which is counted."""
    assert each.seat is not None
    for _ in range(ATTEMPTS):
        drawn, graphs = each.seat.ask("draw", each.contestant.fit(schedule), number, count)
        each.recompiles[preset] = each.recompiles.get(preset, 0) + graphs
        if not graphs:
            break
    result: Drawn = drawn
    return result


def rows_of(competitors: Sequence[Competitor], schedules: dict[str, Schedule], costs: Costs) -> list[dict[str, Any]]:
    """One mapping per contestant and mask, with what there is so far."""
    by_name = {each.name: each for each in competitors}
    rows = []
    for preset, schedule in schedules.items():
        for each in competitors:
            drawn = each.drawn.get(preset, [])
            row: dict[str, Any] = {
                "method": each.name,
                "group": each.contestant.group,
                "preset": preset,
                **dataclasses.asdict(schedule),
                "refusal": each.refusal,
                **_prepared(each, preset),
            }
            if drawn:
                row |= _measured(each, preset, schedule, by_name, costs)
            rows.append(row)
    return rows


def _prepared(each: Competitor, preset: str) -> dict[str, Any]:
    memory, prepared = each.examined and each.examined.memory, each.prepared
    return {
        "compile_s": prepared and prepared.compile_s,
        "graphs": prepared and prepared.compiled.graphs,
        "graph_breaks": prepared and prepared.compiled.graph_breaks,
        "recompiles": prepared and prepared.compiled.recompiles + each.recompiles.get(preset, 0),
        "peak_bytes": memory and memory.peak_bytes,
        "state_bytes": memory and memory.state_bytes,
    }


def _on_gpu(examined: Examined | None, letter: str) -> dict[str, float] | None:
    """Medians over the steps that all branches decided so, but the first one, which sets the generation up."""
    if examined is None or examined.gpu is None:
        return None
    steps, decisions = examined.gpu
    alike = [set(letters) == {letter} for letters in zip(*decisions, strict=True)]
    its = [step for step, is_alike in list(zip(steps, alike, strict=True))[1:] if is_alike]
    names = ("busy_ms", "kernels", "host_syncs")
    return {name: Spread.of([float(getattr(step, name)) for step in its]).median for name in names} if its else None


def _measured(
    each: Competitor, preset: str, schedule: Schedule, by_name: dict[str, Competitor], costs: Costs
) -> dict[str, Any]:
    drawn = each.drawn[preset]
    seconds = [one.seconds for one in drawn]
    decisions = drawn[0].decisions
    found: dict[str, Any] = {"decisions": decisions, "wall_s": Spread.of(seconds), "round_s": seconds}
    counted = each.examined and each.examined.flops
    if counted:
        found["flops"] = sum(counted[letter] * _count(decisions, letter) for letter in sorted(set("".join(decisions))))
    elif each.name != "ideal":
        found["flops"] = costs.of(each.contestant.fit(schedule), decisions)
    found |= {"computed_steps": _count(decisions, "C"), "reused_steps": _count(decisions, ".")}
    for base in BASES:
        beside = [one.seconds for one in by_name[base].drawn.get(preset, [])] if base in by_name else []
        pairs = list(zip(beside, seconds, strict=False))
        found[f"speedup_to_{base}"] = paired_ratio(*zip(*pairs, strict=True)) if pairs else None
    for letter, name in (("C", "computed"), (".", "reused")):
        times = [ms for one in drawn for ms in one.of(letter)]
        found[f"{name}_step_ms"] = Spread.of(times) if times else None
        on_gpu = _on_gpu(each.examined, letter)
        found[f"{name}_step_on_gpu"] = on_gpu
        if times and on_gpu:
            found[f"{name}_step_idle"] = max(0.0, 1 - on_gpu["busy_ms"] / Spread.of(times).median)
    ideal = by_name["ideal"].drawn.get(preset, []) if "ideal" in by_name else []
    ideal_times = [ms for one in ideal for ms in one.of("C")]
    if ideal_times and found["reused_step_ms"]:
        found["reused_to_ideal"] = found["reused_step_ms"].median / Spread.of(ideal_times).median
    return found


def _count(decisions: Sequence[str], letter: str) -> int:
    return sum(branch.count(letter) for branch in decisions)
