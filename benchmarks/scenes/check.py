"""Look at a trained transformer: samples beside real scenes of the same captions, and what the judge reads in both."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.scenes.caption import Layouts
from benchmarks.scenes.data import draw, random_layouts
from benchmarks.scenes.judge import load_judge
from benchmarks.scenes.sample import sample

SEED = 2_147_000_002
"""Of the scenes that neither the transformer nor the judge was trained on."""
SHOWN = 40
PAIRS_A_ROW = 8
SCALE = 3


def held_out(count: int) -> tuple[Tensor, Layouts]:
    """Real scenes, float32 [N, 3, 32, 32] in [0, 1], and what they hold."""
    generator = torch.Generator().manual_seed(SEED)
    layouts = random_layouts(count, generator)
    return draw(layouts, generator), layouts


def check_samples(transformer: torch.nn.Module, count: int, picture: Path) -> None:
    """Draw samples, write some of them beside real scenes, and print the judge's figures."""
    real, layouts = held_out(count)
    samples = sample(transformer, layouts)
    save_pairs(samples[:SHOWN], real[:SHOWN], picture)
    print(f"{count} samples beside real scenes: {picture}", flush=True)
    for name, images in (("real", real), ("samples", samples)):
        print(figures(name, images, layouts), flush=True)


def figures(name: str, images: Tensor, layouts: Layouts) -> str:
    """One line of what the judge reads in images, against what was asked for."""
    judge = load_judge()
    parts = ", ".join(f"{kind} {share:.1%}" for kind, share in judge.attribute_accuracy(images, layouts).items())
    whole = judge.whole_accuracy(images, layouts)
    return f"judge on {name}: {judge.accuracy(images, layouts):.2%} of attributes ({parts}), {whole:.1%} of scenes"


def save_pairs(samples: Tensor, real: Tensor, path: Path) -> None:
    """Write a grid of pairs: a sample, and to its right a real scene of the same caption."""
    pairs = torch.cat((samples, real), dim=3)
    pairs = torch.nn.functional.pad(pairs, (1, 1, 1, 1), value=1.0)
    missing = -len(pairs) % PAIRS_A_ROW
    pairs = torch.cat((pairs, torch.ones(missing, *pairs.shape[1:])))
    rows = pairs.unflatten(0, (-1, PAIRS_A_ROW)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    picture = Image.fromarray(rows.mul(255).round().byte().numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST).save(path)
