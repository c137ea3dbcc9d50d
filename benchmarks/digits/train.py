"""Train the digits transformer by flow matching: `python -m benchmarks.digits.train`.

The target is the velocity `noise - image` at `(1 - time) * image + time * noise`, times are logit-normal, one class in
ten is dropped for guidance. Every step draws from its own seed, so that a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from benchmarks.digits.data import transformer_digits
from benchmarks.digits.model import NULL_CLASS, WEIGHTS, condition, new_transformer, pack, position_ids
from benchmarks.training import average, descend

CHECKPOINT = Path(__file__).parent / "checkpoints" / "last.pt"
CHECKPOINT_STEPS = 100
PEAK_RATE = 1e-3
CLASS_DROPOUT = 0.1
EMA_DECAY = 0.998


@dataclass(frozen=True)
class Batch:
    """Noisy tokens [N, 64, 4], their times [N], class labels [N] (10: dropped) and target velocities [N, 64, 4]."""

    noisy: Tensor
    times: Tensor
    labels: Tensor
    velocity: Tensor

    @classmethod
    def between(cls, clean: Tensor, noise: Tensor, times: Tensor, labels: Tensor) -> Batch:
        """Points on the straight lines from clean tokens (time 0) to their noise (time 1)."""
        share = times[:, None, None]
        return cls((1 - share) * clean + share * noise, times, labels, noise - clean)


@dataclass
class Run:
    """Everything that a checkpoint holds."""

    transformer: FluxTransformer2DModel
    ema: FluxTransformer2DModel
    optimizer: AdamW
    schedule: OneCycleLR
    step: int = 0
    losses: list[float] = field(default_factory=list)

    @classmethod
    def new(cls, steps: int, seed: int, device: str) -> Run:
        """A run of `steps` steps that has not begun."""
        torch.manual_seed(seed)
        transformer = new_transformer().to(device).train()
        ema = new_transformer().to(device).eval().requires_grad_(False)
        ema.load_state_dict(transformer.state_dict())
        optimizer = AdamW(transformer.parameters(), lr=PEAK_RATE)
        schedule = OneCycleLR(optimizer, max_lr=PEAK_RATE, total_steps=steps)
        return cls(transformer, ema, optimizer, schedule)

    def save(self, path: Path) -> None:
        """Write the checkpoint; a crash while writing leaves the one before."""
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {name: getattr(self, name).state_dict() for name in ("transformer", "ema", "optimizer", "schedule")}
        torch.save({**parts, "step": self.step, "losses": self.losses}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def restore(self, path: Path, steps: int) -> None:
        """Continue from a checkpoint of a run of the same length; ValueError if it was planned for another one."""
        saved = torch.load(path, map_location=self.transformer.device, weights_only=True)
        planned = saved["schedule"]["total_steps"]
        if planned != steps:
            raise ValueError(f"--steps={steps}: {path} is a run of {planned} steps, resume it with --steps {planned}")
        for name in ("transformer", "ema", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(saved[name])
        self.step, self.losses = saved["step"], saved["losses"]


def draw_batch(tokens: Tensor, labels: Tensor, size: int, seed: int, step: int) -> Batch:
    """The batch of one step, on the CPU, the same for the same `seed` and `step`."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    rows = torch.randint(len(tokens), (size,), generator=generator)
    dropped = torch.rand(size, generator=generator) < CLASS_DROPOUT
    times = torch.randn(size, generator=generator).sigmoid()
    clean = tokens[rows]
    noise = torch.randn(clean.shape, generator=generator)
    return Batch.between(clean, noise, times, labels[rows].masked_fill(dropped, NULL_CLASS))


def velocity_error(transformer: FluxTransformer2DModel, batch: Batch) -> Tensor:
    """Mean squared error of the predicted velocity, a scalar with a gradient."""
    device = transformer.device
    text, pooled = condition(batch.labels.to(device))
    text_ids, image_ids = position_ids(device)
    velocity = transformer(
        hidden_states=batch.noisy.to(device),
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=batch.times.to(device),
        txt_ids=text_ids,
        img_ids=image_ids,
        return_dict=False,
    )[0]
    return mse_loss(velocity, batch.velocity.to(device))


def train_step(run: Run, batch: Batch) -> float:
    """One step of the run, and of the averaged weights; returns the mean squared error of the velocity."""
    error = velocity_error(run.transformer, batch)
    loss = descend(error, run.transformer.parameters(), run.optimizer)
    run.schedule.step()
    run.step += 1
    average(run.ema, run.transformer, run.step, EMA_DECAY)
    return float(loss)


def export(ema: FluxTransformer2DModel, folder: Path) -> None:
    """Write the averaged weights in half precision, in diffusers' layout."""
    half = new_transformer()
    half.load_state_dict(ema.state_dict())
    half.half().save_pretrained(folder)


def main() -> None:
    """Parse the arguments, train, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1700)
    parser.add_argument("--stop-after", type=int, default=None, help="end at this step of the same schedule")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of torch (default: torch's own choice)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint, if there is one")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the trained weights")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    images, labels = transformer_digits()
    tokens = pack(images)
    run = Run.new(arguments.steps, arguments.seed, arguments.device)
    if arguments.resume and arguments.checkpoint.exists():
        run.restore(arguments.checkpoint, arguments.steps)
    last = arguments.steps if arguments.stop_after is None else min(arguments.stop_after, arguments.steps)
    with tqdm(total=last, initial=run.step, desc="training", unit="step") as bar:
        while run.step < last:
            batch = draw_batch(tokens, labels, arguments.batch_size, arguments.seed, run.step)
            run.losses.append(train_step(run, batch))
            recent = run.losses[-CHECKPOINT_STEPS:]
            bar.set_postfix(loss=f"{sum(recent) / len(recent):.4f}", refresh=False)
            bar.update()
            if run.step % CHECKPOINT_STEPS == 0 or run.step == last:
                run.save(arguments.checkpoint)
    export(run.ema, arguments.out)
    recent = run.losses[-CHECKPOINT_STEPS:]
    print(f"mean loss of the last {len(recent)} steps: {sum(recent) / len(recent):.4f}; weights in {arguments.out}")


if __name__ == "__main__":
    main()
