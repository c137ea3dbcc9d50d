"""Quality over speed of every method on the trained digits model: `python -m benchmarks.calibrators`.

One row per method and schedule: how many times fewer block executions, how close the pictures are to the uncached ones,
and the time beside plain Inductor, which is measured in the same rounds. The baseline of all is `fewer-steps`: no cache
and as much work. Every method gets the same masks and the same thresholds; none is tuned.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.curves import plot_curves
from benchmarks.methods import NOT_COMPILED, Method, Run, Setting, Work, open_uncached, own_methods
from benchmarks.peers import INSTALL, peer_methods
from benchmarks.published import published_methods
from benchmarks.quality import Quality, Reference
from benchmarks.report import RESULTS, ROOT, Spread, environment, paired_ratio, table, write_json
from benchmarks.schedules import FAMILIES, Schedule

TOGETHER = 8
"""Rows that share the rounds of the uncached models: fewer means closer pairs, and more time."""


@dataclass(frozen=True)
class Plan:
    """How much is drawn."""

    samples: int
    rounds: int
    setting: Setting
    guidance: float = 2.0

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.samples < self.rounds or self.samples % self.rounds:
            raise ValueError(f"--samples={self.samples}, --rounds={self.rounds}: expected a multiple of the rounds")

    def labels(self, number: int) -> Tensor:
        """Classes of one round: 0 to 9 in turn, over all rounds."""
        count = self.samples // self.rounds
        return torch.arange(number * count, (number + 1) * count) % 10


@dataclass(eq=False)
class Row:
    """One method with one schedule, and what was measured of it."""

    method: Method
    schedule: Schedule
    run: Run | None = None
    compile_s: float = 0.0
    seconds: list[float] = field(default_factory=list)
    beside: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of the uncached models in the same rounds, by compiler."""
    images: list[Tensor] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)

    def draw(self, plan: Plan, number: int) -> tuple[Tensor, float]:
        """The pictures of one round, always from the same noise, and the seconds they took."""
        assert self.run is not None
        self.run.pipeline.set_progress_bar_config(disable=True)
        self.run.begin()
        generator = torch.Generator().manual_seed(1000 + number)
        begin = time.perf_counter()
        (images,) = self.run.pipeline(
            plan.labels(number), self.schedule.steps, plan.guidance, generator, output_type="pt", return_dict=False
        )
        return images, time.perf_counter() - begin

    def prepare(self, plan: Plan) -> None:
        """Compile, and note what that took: a first short generation less a second one."""
        short = Row(self.method, dataclasses.replace(self.schedule, steps=1), self.run)
        first, second = (short.draw(plan, 0)[1] for _ in range(2))
        self.compile_s = first - second

    def measure(self, plan: Plan, number: int) -> None:
        """Draw one round and keep everything of it."""
        assert self.run is not None
        images, seconds = self.draw(plan, number)
        self.images.append(images)
        self.seconds.append(seconds)
        self.work.append(self.run.work(self.schedule.steps))

    def let_go(self) -> None:
        """Close the pipeline; what was measured stays."""
        if self.run is not None and self.method.open is not None:
            self.run.close()
        self.run = None


def rows_to_measure(methods: Sequence[Method], setting: Setting, families: Sequence[str] = FAMILIES) -> list[Row]:
    """One row per method and schedule of these families; nothing is opened yet."""
    found = [Row(method, schedule) for method in methods for schedule in method.schedules(setting)]
    return [row for row in found if row.schedule.family in families]


def measure_all(rows: Sequence[Row], plan: Plan) -> list[Row]:
    """Measure all rows, a few at a time in turns with the uncached models; return the rows of those before them."""
    compilers = dict.fromkeys([plan.setting.inner, *(row.method.uncached or plan.setting.inner for row in rows)])
    uncached = {compiler: _uncached(plan.setting, compiler) for compiler in compilers}
    with tqdm(total=len(rows) + len(uncached), desc="calibrators", unit="row") as bar:
        for row in uncached.values():
            row.prepare(plan)
            bar.update()
        for group in _groups(rows):
            _measure_group(group, uncached, plan, bar)
    return [*uncached.values(), *rows]


def _uncached(setting: Setting, compiler: str) -> Row:
    name = "uncached, not compiled" if compiler == NOT_COMPILED else f"uncached, {compiler}"
    method = Method(name, lambda _: [], None, compiler)
    return Row(method, Schedule("steps", setting.steps), open_uncached(setting, compiler))


def _groups(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows that are measured side by side: those with the same uncached model."""
    for compiler in dict.fromkeys(row.method.uncached for row in rows):
        alike = [row for row in rows if row.method.uncached == compiler]
        yield from (alike[begin : begin + TOGETHER] for begin in range(0, len(alike), TOGETHER))


def _measure_group(group: Sequence[Row], uncached: dict[str, Row], plan: Plan, bar: Any) -> None:
    for row in group:
        bar.set_postfix_str(f"{row.method.name}, {row.schedule.name}, compiling")
        if row.method.open is None:
            row.run = uncached[plan.setting.inner].run
        else:
            row.run = row.method.open(plan.setting, row.schedule)
            row.prepare(plan)
    compilers = dict.fromkeys([plan.setting.inner, group[0].method.uncached or plan.setting.inner])
    references = [uncached[compiler] for compiler in compilers]
    for number in range(plan.rounds):
        for row in (*references, *group):
            bar.set_postfix_str(f"{row.method.name}, {row.schedule.name}, round {number + 1} of {plan.rounds}")
            row.measure(plan, number)
            bar.update(number + 1 == plan.rounds and row not in references)
        for row in (*references, *group):
            for compiler in compilers:
                row.beside.setdefault(compiler, []).append(uncached[compiler].seconds[-1])
    for row in group:
        row.let_go()
    # the compiled code of a model lives as long as the model
    gc.collect()


def report_rows(rows: Sequence[Row], plan: Plan) -> list[dict[str, Any]]:
    """One mapping per row: what was saved, how good the pictures are, how long it took; sorted by saving and PSNR."""
    first = rows[0]
    pictures = torch.cat(first.images[: plan.rounds])
    reference = Reference(pictures, torch.cat([plan.labels(number) for number in range(plan.rounds)]))
    full = sum(work.block_runs for work in first.work[: plan.rounds])
    found = [_report(row, reference, full, plan) for row in rows]
    return sorted(found, key=lambda row: (row["factor"], row["psnr_db"]))


def _report(row: Row, reference: Reference, full: int, plan: Plan) -> dict[str, Any]:
    quality: Quality = reference.quality(torch.cat(row.images[: plan.rounds]))
    work = row.work[: plan.rounds]
    runs = sum(each.block_runs for each in work)
    own = row.method.uncached or plan.setting.inner
    return {
        "method": row.method.name,
        "schedule": row.schedule.name,
        "compiler": own,
        **dataclasses.asdict(row.schedule),
        "factor": full / runs,
        "block_runs": runs,
        "computed_steps": sum(each.count("C") for each in work),
        "reused_steps": sum(each.count(".") + each.count("m") for each in work),
        "decisions": work[0].decisions,
        **dataclasses.asdict(quality),
        "wall_s": Spread.of(row.seconds),
        "speedup": _speedup(row, plan.setting.inner),
        "speedup_same_compiler": _speedup(row, own),
        "compile_s": row.compile_s,
    }


def _speedup(row: Row, compiler: str) -> Spread:
    return paired_ratio(row.beside[compiler], row.seconds)


def print_rows(rows: Sequence[dict[str, Any]], plan: Plan) -> None:
    """Print the table."""
    print(f"\n{plan.samples} digits, {plan.setting.steps} steps, guidance {plan.guidance:g}, {plan.rounds} rounds\n")
    columns = ("", "schedule", "factor", "computed", "PSNR dB", "SSIM", "read", "FD uncached", "FD real")
    print(table((*columns, "wall s", "speedup", "same compiler"), map(_cells, rows)), "\n")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["method"],
        row["schedule"],
        f"{row['factor']:.2f}x",
        f"{row['computed_steps']} of {row['computed_steps'] + row['reused_steps']}",
        f"{row['psnr_db']:.1f}",
        f"{row['ssim']:.4f}",
        f"{100 * row['accuracy']:.0f} %",
        f"{row['frechet_uncached']:.3f}",
        f"{row['frechet_real']:.2f}",
        f"{row['wall_s'].median:.2f}",
        *(f"{spread.median:.2f}x" for spread in (row["speedup"], row["speedup_same_compiler"])),
    )


def chosen(names: Sequence[str] | None, skip_peers: bool) -> list[Method]:
    """The methods to measure, by name or all; ValueError for a name that is none of them."""
    peers = [] if skip_peers else peer_methods()
    if not peers and not skip_peers:
        print(INSTALL)
    methods = [*own_methods(), *published_methods(), *peers]
    if names is None:
        return methods
    known = [method.name for method in methods]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--methods {' '.join(unknown)}: expected some of {', '.join(known)}")
    return [method for method in methods if method.name in names]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the arguments, measure, print the table, write the plot and the JSON; return its content."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=100, help="pictures per row, over all rounds")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--methods", nargs="+", help="names of methods, such as fewer-steps or fxcache-foca")
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES, help="of schedules")
    parser.add_argument("--skip-peers", action="store_true", help="leave out cache-dit")
    parser.add_argument("--inner-backend", default="inductor", choices=("inductor", "aot_eager", "eager"))
    parser.add_argument("--json", type=Path, default=RESULTS / "calibrators-cpu.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "calibrators.png")
    given = parser.parse_args(arguments)
    try:
        plan = Plan(given.samples, given.rounds, Setting(given.steps, inner=given.inner_backend))
        methods = chosen(given.methods, given.skip_peers)
    except ValueError as error:
        parser.error(str(error))

    # every row is a compilation of the same class, and Dynamo would stop at the eighth
    limits = torch._dynamo.config.patch(recompile_limit=10_000, accumulated_recompile_limit=10_000)
    with limits:
        rows = report_rows(measure_all(rows_to_measure(methods, plan.setting, given.families), plan), plan)
    print_rows(rows, plan)
    plot_curves(rows, given.plot)
    where = environment()
    if any(method.name.startswith("cache-dit") for method in methods):
        where["versions"]["cache-dit"] = version("cache-dit")
    case = {"samples": plan.samples, "rounds": plan.rounds, "steps": given.steps, "guidance": plan.guidance}
    case |= {"dtype": "float32", "device": "cpu", "inner": given.inner_backend}
    report = {"benchmark": "calibrators", **where, "case": case, "rows": rows}
    write_json(given.json, report)
    print(f"written: {given.plot}, {given.json}")
    return report


if __name__ == "__main__":
    main()
