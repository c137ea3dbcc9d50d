"""Train the scenes transformer by flow matching: `python -m benchmarks.scenes.train --minutes 8`.

The target is the velocity `noise - image` at `(1 - time) * image + time * noise`; times are logit-normal, shifted to
the noisier side; one caption in ten is dropped for guidance. Every step draws new scenes from its own seed, on the
device itself, so that a resumed run equals an uninterrupted one. On CUDA the blocks are compiled and run in bfloat16
around a residual stream in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import AdamW
from tqdm import tqdm

from benchmarks.scenes.data import draw, random_layouts
from benchmarks.scenes.model import LARGEST_FILE, WEIGHTS, condition, new_transformer, pack, position_ids
from benchmarks.scenes.schedule import Clock, rate
from benchmarks.training import average, descend

CHECKPOINT = Path(__file__).parent / "checkpoints" / "last.pt"
CHECKPOINT_STEPS = 500
LOG_STEPS = 50
PEAK_RATE = 1.5e-3
BETAS = (0.9, 0.99)
CAPTION_DROPOUT = 0.1
TIME_SHIFT = 1.5
EMA_DECAY = 0.999


@dataclass(frozen=True)
class Batch:
    """Noisy tokens [N, 256, 12], times [N], text states, pooled vectors and target velocities, all on the device."""

    noisy: Tensor
    times: Tensor
    text: Tensor
    pooled: Tensor
    velocity: Tensor


@dataclass
class Run:
    """Everything that a checkpoint holds; `steps` is the planned number, None as long as the speed is measured."""

    transformer: FluxTransformer2DModel
    ema: FluxTransformer2DModel
    optimizer: AdamW
    ids: tuple[Tensor, Tensor]
    peak_rate: float
    steps: int | None
    step: int = 0
    losses: list[float] = field(default_factory=list)

    @classmethod
    def new(cls, steps: int | None, seed: int, device: torch.device, peak_rate: float = PEAK_RATE) -> Run:
        """A run that has not begun."""
        torch.manual_seed(seed)
        transformer = new_transformer()
        start_as_identity(transformer)
        ema = new_transformer().to(device).eval().requires_grad_(False)
        ema.load_state_dict(transformer.state_dict())
        transformer.to(device).train()
        optimizer = AdamW(transformer.parameters(), lr=peak_rate, betas=BETAS, fused=device.type == "cuda")
        return cls(transformer, ema, optimizer, position_ids(device), peak_rate, steps)

    def save(self, path: Path) -> None:
        """Write the checkpoint; a crash while writing leaves the one before."""
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {name: getattr(self, name).state_dict() for name in ("transformer", "ema", "optimizer")}
        numbers = {name: getattr(self, name) for name in ("steps", "step", "losses", "peak_rate")}
        torch.save({**parts, **numbers}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint; ValueError if its run was planned for another number of steps."""
        saved = torch.load(path, map_location=self.transformer.device, weights_only=True)
        planned = saved["steps"]
        if self.steps is not None and planned != self.steps:
            raise ValueError(f"--steps={self.steps}: {path} is a run of {planned} steps, resume it with that number")
        for name in ("transformer", "ema", "optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        self.steps, self.step, self.losses = planned, saved["step"], saved["losses"]
        self.peak_rate = saved["peak_rate"]


def start_as_identity(transformer: FluxTransformer2DModel) -> None:
    """Zero the modulation of every block and the output, so that a deep transformer trains from its first step."""
    modulations: list[nn.Linear] = [transformer.norm_out.linear, transformer.proj_out]
    for block in transformer.transformer_blocks:
        modulations += [block.norm1.linear, block.norm1_context.linear]
    modulations += [block.norm.linear for block in transformer.single_transformer_blocks]
    for linear in modulations:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)


def keep_residual_precision(transformer: FluxTransformer2DModel) -> None:
    """Under autocast, start the residual stream in float32; the time, which takes its type, stays exact by that."""
    for embedder in (transformer.x_embedder, transformer.context_embedder):
        embedder.register_forward_hook(lambda _module, _inputs, states: states.float())


def draw_batch(size: int, seed: int, step: int, device: torch.device) -> Batch:
    """The batch of one step: new scenes, the same for the same `seed`, `step` and kind of device."""
    generator = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
    layouts = random_layouts(size, generator)
    clean = pack(draw(layouts, generator))
    dropped = torch.rand(size, generator=generator, device=device) < CAPTION_DROPOUT
    times = torch.randn(size, generator=generator, device=device).sigmoid()
    times = TIME_SHIFT * times / (1 + (TIME_SHIFT - 1) * times)
    noise = torch.randn(clean.shape, generator=generator, device=device)
    share = times[:, None, None]
    text, pooled = condition(layouts, dropped)
    return Batch((1 - share) * clean + share * noise, times, text, pooled, noise - clean)


def train_step(run: Run, batch: Batch) -> Tensor:
    """One optimiser step; returns the mean squared error of the velocity, on the device."""
    for group in run.optimizer.param_groups:
        group["lr"] = rate(run.step, run.steps, run.peak_rate)
    device = run.transformer.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        velocity = run.transformer(
            hidden_states=batch.noisy,
            encoder_hidden_states=batch.text,
            pooled_projections=batch.pooled,
            timestep=batch.times,
            txt_ids=run.ids[0],
            img_ids=run.ids[1],
            return_dict=False,
        )[0]
    loss = descend(mse_loss(velocity.float(), batch.velocity), run.transformer.parameters(), run.optimizer)
    run.step += 1
    average(run.ema, run.transformer, run.step, EMA_DECAY)
    return loss


def train(run: Run, clock: Clock, batch_size: int, seed: int, checkpoint: Path) -> None:
    """Train to the planned number of steps, or until the clock's deadline."""
    device = run.transformer.device
    pending: list[Tensor] = []

    def read_losses() -> None:
        # the only wait for the device
        run.losses += torch.stack(pending).tolist() if pending else []
        pending.clear()

    # a log file needs fewer lines than a terminal
    interval = 1.0 if sys.stderr.isatty() else 10.0
    with tqdm(total=run.steps, initial=run.step, desc="training", unit="step", mininterval=interval) as bar:
        while (run.steps is None or run.step < run.steps) and not clock.is_over():
            pending.append(train_step(run, draw_batch(batch_size, seed, run.step, device)))
            if clock.stepped(device) and run.steps is None:
                bar.total = run.steps = run.step + clock.steps_left()
            if run.step % LOG_STEPS == 0:
                read_losses()
                bar.set_postfix(loss=f"{recent_loss(run.losses):.4f}", refresh=False)
            bar.update()
            if run.step % CHECKPOINT_STEPS == 0:
                read_losses()
                run.save(checkpoint)
    read_losses()
    run.save(checkpoint)


def recent_loss(losses: Iterable[float]) -> float:
    """Mean of the last 100 losses."""
    recent = list(losses)[-100:]
    return sum(recent) / max(len(recent), 1)


def export(ema: FluxTransformer2DModel, folder: Path) -> None:
    """Write the averaged weights in half precision, in diffusers' layout, in files of less than 15 MB."""
    half = new_transformer()
    half.load_state_dict(ema.state_dict())
    half.half().save_pretrained(folder, max_shard_size=LARGEST_FILE)


def write_record(run: Run, batch_size: int, seed: int, seconds: float, path: Path) -> None:
    """Write what the weights were made with, and the mean loss of every 100 steps."""
    device = run.transformer.device
    record = {
        "steps": run.step,
        "planned_steps": run.steps,
        "batch_size": batch_size,
        "seed": seed,
        "peak_rate": run.peak_rate,
        "seconds_of_the_last_process": round(seconds),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "losses": [round(recent_loss(run.losses[: last + 100]), 4) for last in range(0, len(run.losses), 100)],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    """Parse the arguments, train, write the weights, draw and judge samples."""
    clock_start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="optimiser steps")
    length.add_argument("--minutes", type=float, help="as many steps as this time allows, compilation included")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help=f"peak of the learning rate ({PEAK_RATE})")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="compile the blocks (on CUDA: yes)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint, if there is one")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the trained weights and samples.png")
    parser.add_argument("--samples", type=int, default=512, help="samples to judge at the end; 0 for none")
    arguments = parser.parse_args()

    device = arguments.device
    torch.set_float32_matmul_precision("high")
    # In torch 2.11 on an H100 its backward pass reads beyond the 273 tokens.
    torch.backends.cuda.enable_cudnn_sdp(False)
    run = Run.new(arguments.steps, arguments.seed, device, arguments.rate)
    if arguments.resume and arguments.checkpoint.exists():
        run.restore(arguments.checkpoint)
    keep_residual_precision(run.transformer)
    if device.type == "cuda" if arguments.compile is None else arguments.compile:
        run.transformer.compile_repeated_blocks(dynamic=False)
    train(run, Clock(arguments.minutes, clock_start), arguments.batch_size, arguments.seed, arguments.checkpoint)
    export(run.ema, arguments.out)
    seconds = time.monotonic() - clock_start
    write_record(run, arguments.batch_size, arguments.seed, seconds, arguments.out / "training.json")
    print(
        f"{run.step} steps of {run.steps} planned, {seconds:.0f} s, "
        f"mean loss of the last 100: {recent_loss(run.losses):.4f}; weights in {arguments.out}",
        flush=True,
    )
    if arguments.samples:
        from benchmarks.scenes.check import check_samples

        check_samples(run.ema, arguments.samples, arguments.out / "samples.png")


if __name__ == "__main__":
    main()
