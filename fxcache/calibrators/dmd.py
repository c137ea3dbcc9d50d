"""DMD: continue the last computed steps as a sum of exponentials (dynamic mode decomposition).

For n snapshots at equal distances p, X the older ones and X' the younger ones (each without the last, the first):

    X = U S V',    A = U' X' V S^-1,    A W = W L,    Phi = X' V S^-1 W,    b = argmin | Phi b - newest |
    y(now) = Re( Phi L^k b ),           k = (now - newest time) / p

Everything but y lies in the span of the snapshots, so S, V, A and b come from their scalar products alone: matrices of
n rows, n <= 8, and no decomposition of anything as long as a stream. Exact on sums of as many exponentials as the
snapshots resolve. With fewer than four snapshots at equal distances, with a fit that is not finite in float32 or whose
gain is above the limit: the straight line through the last two, under the same limit.

Source: Schmid, J. Fluid Mech. 656 (2010); exact modes: Tu et al., J. Comput. Dyn. 1 (2014); method of snapshots.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxcache.calibrators.taylorseer import unobserved_weights, within
from fxcache.kernels import Forecaster, Window

_LEAST = 4
_UNEVEN = 1e-6
_RESOLVED = 1e-4
"""Singular values below this share of the largest are noise: half of the digits of float32, as in cache-dit."""


def dmd(rank: float, ridge: float, limit: float = math.inf) -> Forecaster:
    """Return the forecaster; ``rank`` 0 keeps what is resolved, ``ridge`` is a share of the largest singular value."""
    return Forecaster(lambda window: dmd_weights(window, int(rank), ridge, limit), needs_gram=True)


def dmd_weights(window: Window, rank: int, ridge: float, limit: float = math.inf) -> list[float]:
    """Weights of the exponential fit, newest first; where their gain is above the limit, those of the line."""
    count = _evenly_spaced(window.times)
    line = unobserved_weights(window, 1, limit)
    if window.gram is None or count < _LEAST:
        return line
    period = window.times[0] - window.times[1]
    oldest_first = torch.tensor(window.gram, dtype=torch.float64)[:count, :count].flip(0, 1)
    if not bool(oldest_first.isfinite().all()):  # the eigenvalues of such a matrix would be anything
        return line
    try:
        weights = _fit(oldest_first, (window.now - window.times[0]) / period, rank, ridge)
    except torch.linalg.LinAlgError:
        return line
    if not bool(weights.float().isfinite().all()) or not within(weights.tolist(), limit):
        return line
    return [*weights.flip(0).tolist(), *[0.0] * (len(window.times) - count)]


def _evenly_spaced(times: tuple[float, ...]) -> int:
    """Length of the longest beginning of the times that has one distance."""
    if len(times) < 2:
        return len(times)
    period = times[0] - times[1]
    count = 2
    while count < len(times) and abs(times[count - 1] - times[count] - period) <= _UNEVEN * abs(period):
        count += 1
    return count


def _fit(gram: Tensor, steps: float, rank: int, ridge: float) -> Tensor:
    """Weights over the snapshots, oldest first, of the prediction ``steps`` periods after the last."""
    squared, vectors = torch.linalg.eigh(gram[:-1, :-1])
    singular = squared.clamp(min=0).sqrt().flip(0)
    vectors = vectors.flip(1)
    kept = max(1, rank or int((singular > _RESOLVED * singular[0]).sum()))
    kept = min(kept, int((singular > 0).sum()))
    inverse = 1.0 / (singular[:kept] + ridge * singular[0])
    scaled = vectors[:, :kept] * inverse
    values, modes = torch.linalg.eig(scaled.T @ gram[:-1, 1:] @ scaled)
    combine = scaled.to(modes.dtype) @ modes
    younger = gram[1:, 1:].to(modes.dtype)
    amplitudes = torch.linalg.pinv(combine.mH @ younger @ combine, hermitian=True) @ (combine.mH @ younger[:, -1])
    weights = (combine @ (values**steps * amplitudes)).real
    return torch.cat([weights.new_zeros(1), weights])
