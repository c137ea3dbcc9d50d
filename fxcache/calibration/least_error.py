"""Which steps to compute: those between which a forecast from the last two computed ones can err least.

Between two computed steps i < j the steps are reused: what the trunk adds there, R_k, is predicted by weights on R_i
and on R_h of the computed step before. What an error of R_k does to the output is s_k times as large, and a solver goes
m_k with it. So what counts of a run of reused steps is the sum of m_k s_k R_k, and no weights reach the part of it that
is not in the span of R_h and R_i:

    P = sum_{i < k < j} m_k s_k R_k        C(h, i, j) = |P|^2 - v' A^-1 v      A: products of R_h, R_i;  v: with P

s_k is how far the output has moved since step k - 1, divided by how far R has; without it (s = 1) the end of a
generation, where little of R makes much of a picture, is neglected.

All of it follows from the scalar products of the steps with each other. The sum of C over the runs of a generation is
smallest for one set of computed steps, which dynamic programming finds: after every computed step only the last two
matter. Errors of different runs are taken as independent, and that what was computed on predicted latents is off too
is left out.

Source: this project.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["least_error_mask", "moves_of", "sensitivities_of"]

_RIDGE = 1e-9
"""Share of a step's own product: two steps that add the same have no plane between them."""
_LEAST = 1e-30
"""Added to the products of a step, whose mean is 1: nothing may be divided by one that adds nothing."""


def least_error_mask(products: Sequence[Sequence[float]], reach: Sequence[float], computed_steps: int) -> list[int]:
    """Return the mask with so many ones, 1 to S, the first step among them.

    ``products``: [S, S], of what the trunk adds at two steps; ``reach``: [S], the products m_k s_k.

    >>> straight = [[1.0 + 1.0 * i * j for j in range(6)] for i in range(6)]  # on a line: two steps show all others
    >>> least_error_mask(straight, [1.0] * 6, 2)
    [1, 1, 0, 0, 0, 0]
    """
    errors = _errors_of_runs(torch.tensor(products, dtype=torch.float64), torch.tensor(reach, dtype=torch.float64))
    none = steps = errors.shape[1]
    # least error up to the step i, by the computed step before it (row `none`: there is none) and i
    best = torch.full((none + 1, steps), math.inf, dtype=torch.float64)
    best[none, 0] = 0.0
    came_from: list[Tensor] = []
    for _ in range(computed_steps - 1):
        least, before = (best[:, :, None] + errors[:, :, :steps]).min(0)
        came_from.append(before)
        best = torch.full_like(best, math.inf)
        best[:none] = least
    row, step = divmod(int((best + errors[:, :, steps]).argmin()), steps)
    mask = [0] * steps
    mask[step] = 1
    for earlier in reversed(came_from):
        row, step = int(earlier[row, step]), row
        mask[step] = 1
    return mask


def moves_of(times: Sequence[float]) -> list[float]:
    """Return how far a solver goes with each of the steps that it takes at these times.

    The last one ends where nobody says: at 0 if time runs down to it, and no nearer than the one before it went. A
    solver of second order asks twice at one time and adds both up: both go as far as the one before or after them.

    >>> moves_of([1.0, 0.75, 0.75, 0.5])
    [0.25, 0.25, 0.25, 0.5]
    """
    moves = [abs(now - after) for now, after in pairwise(times)]
    runs_down = len(times) > 1 and times[0] > times[-1] > 0
    moves.append(max([*moves[-1:], times[-1] if runs_down else 0.0]))
    found, last = [], next(filter(None, moves), 1.0)
    for move in moves:
        last = move or last
        found.append(last)
    return found


def sensitivities_of(moved: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, ...]:
    """Return s per step, from the squares of how far output and trunk have moved, [branches, S - 1, 2].

    The first step has that of the second. Where the trunk has not moved, no error can be made: 0.

    >>> sensitivities_of([[(4.0, 1.0), (1.0, 4.0)]])
    (2.0, 2.0, 0.5)
    """
    output, trunk = torch.tensor(moved, dtype=torch.float64).sum(0).unbind(1)
    found = torch.where(trunk > 0, output / trunk.clamp_min(torch.finfo(torch.float64).tiny), 0.0).sqrt().tolist()
    return (found[0], *found)


def _errors_of_runs(products: Tensor, reach: Tensor) -> Tensor:
    """Return C [S + 1, S, S + 1] by h (S: none), i and j (S: the end); infinite where they are out of order."""
    steps = len(reach)
    products = products / products.diag().mean().clamp_min(torch.finfo(torch.float64).tiny)
    with_run = torch.nn.functional.pad((products * reach).cumsum(1), (1, 0))
    inside = torch.nn.functional.pad((products * reach * reach[:, None]).cumsum(0).cumsum(1), (1, 0, 1, 0))
    behind = torch.arange(1, steps + 1)  # where the run behind the step i begins
    size = inside.diag()[None, :] - 2 * inside[behind] + inside.diag()[behind][:, None]
    own = with_run[:, None, :] - with_run[:, behind][:, :, None]  # [h, i, j]: products of R_h with the run behind i
    newest = own[torch.arange(steps), torch.arange(steps)]
    squares = products.diag() * (1 + _RIDGE) + _LEAST
    determinant = squares[:, None] * squares - products**2
    both = squares[:, None, None] * newest**2 - 2 * products[:, :, None] * own * newest + squares[:, None] * own**2
    explained = torch.cat([both / determinant[:, :, None], (newest**2 / squares[:, None])[None]])
    errors = (size - explained).clamp_min(0.0)
    h, i, j = torch.meshgrid(torch.arange(steps + 1), torch.arange(steps), torch.arange(steps + 1), indexing="ij")
    return errors.masked_fill((j <= i) | ((h >= i) & (h < steps)), math.inf)
