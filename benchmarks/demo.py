"""The trained digits model, uncached and cached: `make demo`.

Draws the same digits with plain Inductor and with fxcache, prints how fast and how good they are, and writes two
pictures: the digits side by side, and what the cache decided at every step.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from benchmarks.digits.judge import load_judge
from benchmarks.digits.model import WEIGHTS
from benchmarks.digits.sample import DigitsPipeline, load_pipeline
from benchmarks.report import RESULTS, ROOT, Spread, environment, paired_ratio, table, write_json
from fxcache.api import enable_cache, summary
from fxcache.configs import DBCacheConfig, RegressionCalibratorConfig
from fxcache.options import Options
from fxcache.summary import Summary

_EARLY = DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=0.1, max_warmup_steps=2)
CONFIGS: dict[str, Options | None] = {
    "plain Inductor": None,
    "fxcache, default": DBCacheConfig().to_options(),
    "fxcache, regression F1": _EARLY.to_options(**RegressionCalibratorConfig().to_mapping()),
    "fxcache, regression F0": _EARLY.to_options(**RegressionCalibratorConfig().to_mapping(), Fn_compute_blocks=0),
}
"""What is compared; None: not cached."""
PLAIN = next(iter(CONFIGS))
BEST_PSNR = 99.0
"""What equal pictures count as."""


@dataclass(frozen=True)
class Plan:
    """How much is drawn."""

    digits: int
    """Pictures per round, all in one batch."""
    rounds: int
    steps: int
    guidance: float

    def labels(self) -> Tensor:
        """Classes of one round: 0 to 9 in turn."""
        return torch.arange(self.digits) % 10


@dataclass
class Contestant:
    """One pipeline, and what was measured of it."""

    name: str
    options: Options | None
    pipeline: DigitsPipeline
    compile_s: float = 0.0
    seconds: list[float] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    summary: Summary | None = None

    @classmethod
    def new(cls, name: str, options: Options | None, weights: Path, inner: str) -> Contestant:
        """A pipeline with weights of its own; it compiles at its first call."""
        pipeline = load_pipeline(weights)
        if options is None:
            pipeline.transformer.compile(backend=inner)
        else:
            enable_cache(pipeline, **options.replace(inner_backend=inner, on_refusal="raise").to_dict())
        return cls(name, options, pipeline)

    def draw(self, plan: Plan, seed: int, note: str = "") -> tuple[Tensor, float]:
        """Pictures [N, 16, 16] and the seconds they took."""
        self.pipeline.set_progress_bar_config(desc=f"{self.name}{note}", unit="step", leave=False)
        generator = torch.Generator().manual_seed(seed)
        begin = time.perf_counter()
        (images,) = self.pipeline(
            plan.labels(), plan.steps, plan.guidance, generator, output_type="pt", return_dict=False
        )
        return images, time.perf_counter() - begin

    def prepare(self, plan: Plan) -> None:
        """Compile, and note what that took: a first short generation less a second one."""
        short = dataclasses.replace(plan, steps=1)
        first, second = (self.draw(short, seed=0, note=", compiling")[1] for _ in range(2))
        self.compile_s = first - second

    def measure(self, plan: Plan, number: int) -> None:
        """Draw the pictures of one round; all contestants start it from the same noise."""
        images, seconds = self.draw(plan, seed=1000 + number, note=f", round {number + 1} of {plan.rounds}")
        self.images.append(images)
        self.seconds.append(seconds)

    def finish(self, plan: Plan) -> None:
        """Keep what the cache did in the measured rounds."""
        if self.options is None:
            return
        found = summary(self.pipeline)
        kept = [context for context in found.contexts if context.steps == plan.steps]
        labelled = [dataclasses.replace(context, model=self.name) for context in kept]
        self.summary = dataclasses.replace(found, contexts=tuple(labelled))


def compare(plan: Plan, weights: Path = WEIGHTS, inner: str = "inductor") -> list[Contestant]:
    """Compile every contestant, then let them draw in turns."""
    contestants = [Contestant.new(name, options, weights, inner) for name, options in CONFIGS.items()]
    with tqdm(total=len(contestants) * (1 + plan.rounds), desc="demo", unit="run") as bar:
        for contestant in contestants:
            contestant.prepare(plan)
            bar.update()
        for number in range(plan.rounds):
            for contestant in contestants:
                contestant.measure(plan, number)
                bar.update()
    for contestant in contestants:
        contestant.finish(plan)
    return contestants


def psnr(images: Tensor, wanted: Tensor) -> float:
    """Mean over the pictures of the peak signal-to-noise ratio, in dB; equal pictures count as 99."""
    errors = (images - wanted).square().flatten(1).mean(dim=1).double()
    return torch.clamp(-10 * errors.log10(), max=BEST_PSNR).mean().item()


def rows_of(contestants: Sequence[Contestant], plan: Plan) -> list[dict[str, Any]]:
    """One row per contestant: speed and quality."""
    judge, plain = load_judge(), contestants[0]
    labels = plan.labels().repeat(plan.rounds)
    wanted = torch.cat(plain.images)
    rows = []
    for contestant in contestants:
        images = torch.cat(contestant.images)
        done = contestant.summary
        rows.append(
            {
                "contestant": contestant.name,
                "policy": _changed(contestant.options),
                "wall_s": Spread.of(contestant.seconds),
                "speedup": paired_ratio(plain.seconds, contestant.seconds),
                "compile_s": contestant.compile_s,
                "reused_steps": done.reused if done else 0,
                "all_steps": done.steps if done else 2 * plan.steps * plan.rounds,
                "estimated_speedup": done.estimated_speedup if done else None,
                "psnr_db": None if contestant is plain else psnr(images, wanted),
                "accuracy": judge.accuracy(images, labels),
                "pictures": len(images),
            }
        )
    return rows


def _changed(options: Options | None) -> dict[str, Any] | None:
    """The options that are not the default."""
    if options is None:
        return None
    default = Options().to_dict()
    return {name: value for name, value in options.to_dict().items() if value != default[name]}


def print_rows(rows: Sequence[dict[str, Any]], plan: Plan) -> None:
    """Print the table."""
    print(f"\n{plan.digits} digits, {plan.steps} steps, guidance {plan.guidance:g}, {plan.rounds} rounds\n")
    columns = ("", "wall s", "speedup", "compile s", "reused steps", "PSNR dB", "read correctly")
    print(table(columns, map(_cells, rows)), "\n")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    decided = row["psnr_db"] is not None
    return (
        row["contestant"],
        f"{row['wall_s'].median:.2f}",
        f"{row['speedup'].median:.2f}x",
        f"{row['compile_s']:.1f}",
        f"{row['reused_steps']} of {row['all_steps']}" if decided else "-",
        f"{row['psnr_db']:.1f}" if decided else "-",
        f"{100 * row['accuracy']:.1f} %",
    )


def grids(contestants: Sequence[Contestant], rows: Sequence[dict[str, Any]], most: int = 100) -> Image.Image:
    """The pictures of the first round, one grid per contestant, side by side, under a title with the figures."""
    scale, gap, head = 2, 24, 44
    count = min(most, len(contestants[0].images[0]))
    tiles = [_grid(contestant.images[0][:count], scale) for contestant in contestants]
    width, height = tiles[0].size
    width = max(width, 240)
    sheet = Image.new("L", (len(tiles) * (width + gap) + gap, height + head + gap), 255)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for i, (tile, row) in enumerate(zip(tiles, rows, strict=True)):
        left = gap + i * (width + gap)
        sheet.paste(tile, (left, head))
        pen.text((left, 8), row["contestant"], fill=0, font=font)
        pen.text((left, 24), _figures(row), fill=90, font=font)
    return sheet


def _figures(row: dict[str, Any]) -> str:
    parts = [f"{row['wall_s'].median:.1f} s", f"{100 * row['accuracy']:.1f} % correct"]
    if row["psnr_db"] is not None:
        parts.insert(1, f"{row['speedup'].median:.2f}x")
        parts.append(f"{row['psnr_db']:.1f} dB")
    return ", ".join(parts)


def _grid(images: Tensor, scale: int, gap: int = 2) -> Image.Image:
    """White digits on black, ten per row: one class per column."""
    columns = min(10, len(images))
    pixels = images.mul(255).round().byte().numpy().repeat(scale, axis=1).repeat(scale, axis=2)
    side = pixels.shape[1] + gap
    canvas = np.full((math.ceil(len(pixels) / columns) * side + gap, columns * side + gap), 128, dtype=np.uint8)
    for i, picture in enumerate(pixels):
        top, left = gap + i // columns * side, gap + i % columns * side
        canvas[top : top + pixels.shape[1], left : left + pixels.shape[2]] = picture
    return Image.fromarray(canvas)


def plot_decisions(contestants: Sequence[Contestant], path: Path) -> None:
    """Draw the decisions of the last round, both branches of every cached contestant."""
    found = [contestant.summary for contestant in contestants if contestant.summary is not None]
    contexts = tuple(context for each in found for context in each.contexts[-2:])
    dataclasses.replace(found[0], contexts=contexts).plot(path)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the arguments, run, print the table, write the pictures and the JSON; return its content."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--digits", type=int, default=50, help="pictures per round, in one batch")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--inner-backend", default="inductor", choices=("inductor", "aot_eager", "eager"))
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the trained transformer")
    parser.add_argument("--out", type=Path, default=ROOT, help="folder for demo.png and decisions.png")
    parser.add_argument("--json", type=Path, default=RESULTS / "demo-cpu.json")
    given = parser.parse_args(arguments)
    if given.guidance <= 1:
        parser.error("--guidance: expected more than 1, the demo shows two branches")
    plan = Plan(given.digits, given.rounds, given.steps, given.guidance)

    contestants = compare(plan, given.weights, given.inner_backend)
    rows = rows_of(contestants, plan)
    print_rows(rows, plan)
    given.out.mkdir(parents=True, exist_ok=True)
    grids(contestants, rows).save(given.out / "demo.png")
    plot_decisions(contestants, given.out / "decisions.png")
    report = {
        "benchmark": "demo",
        **environment(),
        "case": {**dataclasses.asdict(plan), "dtype": "float32", "device": "cpu", "inner": given.inner_backend},
        "rows": rows,
    }
    write_json(given.json, report)
    print(f"written: {given.out / 'demo.png'}, {given.out / 'decisions.png'}, {given.json}")
    return report


if __name__ == "__main__":
    main()
