"""What all training scripts of these models share: a step of the optimiser, and the averaged weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MAX_GRADIENT_NORM = 1.0


def descend(loss: Tensor, parameters: Iterable[Tensor], optimizer: Optimizer) -> Tensor:
    """One step of the optimiser with clipped gradients; returns the loss, on its device."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def average(ema: nn.Module, model: nn.Module, step: int, most: float) -> None:
    """Move the averaged weights towards those of the model after `step` steps; `most` is the decay in the end."""
    # a fixed decay would average in the random start for hundreds of steps and more
    decay = min(most, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
