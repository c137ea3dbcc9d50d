"""Distil the digits transformer to few steps: `python -m benchmarks.digits.distill`.

The trained model draws pictures from noise, with guidance, and a LoRA learns the straight line from each noise to its
picture (reflow, arXiv 2209.03003). A few Euler steps follow a straight line well, and guidance is in the line: one call
per step is enough.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm, trange

import fxcache
from benchmarks.denoising import initial_noise
from benchmarks.digits.model import FEW_STEPS, GRID, PATCH, load_transformer
from benchmarks.digits.sample import DigitsPipeline, load_pipeline
from benchmarks.digits.train import CHECKPOINT, Batch, velocity_error
from benchmarks.schedules import spread_mask
from benchmarks.training import descend

PAIRS = CHECKPOINT.with_name("pairs.safetensors")
TEACHER_STEPS = 50
COMPUTED_STEPS = 14
GUIDANCE = 2.0
RANK = 16
PEAK_RATE = 1e-3
FIRST_STEPS = 0.25
"""Share of a batch at time 1: the first step sees nothing but noise, and is the hardest."""


@dataclass(frozen=True)
class Pairs:
    """Noise [N, 64, 4], the tokens [N, 64, 4] that the teacher made of it, and the classes [N]."""

    noise: Tensor
    tokens: Tensor
    labels: Tensor


def teacher() -> DigitsPipeline:
    """The trained pipeline, cached: 52 dB to what it draws uncached, in a third of the time."""
    pipeline = load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    fxcache.enable_cache(
        pipeline,
        cache_config=fxcache.DBCacheConfig(
            Fn_compute_blocks=0,
            max_warmup_steps=0,
            steps_computation_mask=spread_mask(TEACHER_STEPS, COMPUTED_STEPS),
            steps_computation_policy="static",
        ),
        calibrator_config=fxcache.RegressionCalibratorConfig(),
    )
    return pipeline


def draw_pairs(pipeline: DigitsPipeline, count: int, size: int, seed: int) -> Pairs:
    """`count` pairs in batches of `size`, every class in turn; the same ones for the same `size` and `seed`."""
    noise, tokens, labels = [], [], []
    for number in trange(0, count, size, desc="drawing pairs", unit="batch"):
        classes = torch.arange(number, min(number + size, count)) % 10
        seeded = [torch.Generator().manual_seed(seed * 1_000_003 + number) for _ in range(2)]
        tokens += pipeline(classes, TEACHER_STEPS, GUIDANCE, seeded[0], output_type="latent", return_dict=False)
        shape = (len(classes), GRID * GRID, PATCH * PATCH)
        noise.append(initial_noise(shape, seeded[1], pipeline.device, torch.float32))
        labels.append(classes)
    return Pairs(torch.cat(noise), torch.cat(tokens), torch.cat(labels))


def kept_pairs(path: Path, count: int, size: int, seed: int) -> Pairs:
    """The pairs of an earlier run with the same arguments, else new ones, which are kept."""
    asked = {"count": str(count), "size": str(size), "seed": str(seed)}
    if path.exists():
        with safe_open(path, "pt") as file:
            if file.metadata() == asked:
                return Pairs(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    pairs = draw_pairs(teacher(), count, size, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(vars(pairs), path, asked)
    return pairs


def draw_batch(pairs: Pairs, size: int, seed: int, step: int) -> Batch:
    """Points on the lines of random pairs, the same for the same `seed` and `step`."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    rows = torch.randint(len(pairs.labels), (size,), generator=generator)
    times = torch.rand(size, generator=generator)
    times[: round(FIRST_STEPS * size)] = 1.0
    return Batch.between(pairs.tokens[rows], pairs.noise[rows], times, pairs.labels[rows])


def add_lora(transformer: FluxTransformer2DModel, seed: int) -> list[Tensor]:
    """A trainable LoRA in every linear layer of the frozen transformer; its parameters."""
    torch.manual_seed(seed)
    linear = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=linear))
    return [each for each in transformer.parameters() if each.requires_grad]


def distil(transformer: FluxTransformer2DModel, pairs: Pairs, steps: int, size: int, seed: int) -> list[float]:
    """Train a LoRA of the transformer; the losses of all steps."""
    parameters = add_lora(transformer, seed)
    optimizer = AdamW(parameters, lr=PEAK_RATE, weight_decay=0.0)
    schedule = OneCycleLR(optimizer, max_lr=PEAK_RATE, total_steps=steps)
    losses: list[float] = []
    with tqdm(total=steps, desc="distilling", unit="step") as bar:
        for step in range(steps):
            loss = velocity_error(transformer, draw_batch(pairs, size, seed, step))
            losses.append(float(descend(loss, parameters, optimizer)))
            schedule.step()
            recent = losses[-100:]
            bar.set_postfix(loss=f"{sum(recent) / len(recent):.4f}", refresh=False)
            bar.update()
    return losses


def main() -> None:
    """Parse the arguments, draw the pairs or read them, train, write the LoRA in half precision."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64, help="of the training; pairs are drawn 100 at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=PAIRS, help="file for the pairs, read by a second run")
    parser.add_argument("--out", type=Path, default=FEW_STEPS, help="folder for the LoRA")
    given = parser.parse_args()
    pairs = kept_pairs(given.keep, given.pairs, 100, given.seed)
    transformer = load_transformer()
    losses = distil(transformer, pairs, given.steps, given.batch_size, given.seed)
    for parameter in transformer.parameters():
        parameter.data = parameter.data.half()
    transformer.save_lora_adapter(given.out)
    recent = losses[-100:]
    print(f"mean loss of the last {len(recent)} steps: {sum(recent) / len(recent):.4f}; LoRA in {given.out}")


if __name__ == "__main__":
    main()
