"""The calibrators once more, on the vectors themselves and by other means than the package: numpy's solvers.

Every function returns one weight per stored step, newest first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]


def taylorseer(times: Sequence[float], now: float, order: int, limit: float = math.inf) -> Vector:
    """Of the polynomial that numpy fits to the newest steps; of a lower order if their absolute sum is too large."""
    weights = _polynomial(times, now, order)
    too_much = np.abs(weights).sum() > limit * (1 + 1e-9) and order > 0
    return taylorseer(times, now, order - 1, limit) if too_much else weights


def _polynomial(times: Sequence[float], now: float, order: int) -> Vector:
    used = min(order + 1, len(times))
    if used == 1:
        return np.eye(len(times))[0]
    at = (np.array(times) - times[0]) / (now - times[0])
    weights = np.zeros(len(times))
    weights[:used] = np.polyfit(at[:used], np.eye(used), used - 1).sum(0)  # its value at 1
    return weights


def best_taylorseer(
    times: Sequence[float],
    now: float,
    order: int,
    observation: Vector,
    stored: Vector,
    limit: float = math.inf,
) -> Vector:
    """Of the order up to this one that comes nearest to the observation, of those that keep the limit."""
    candidates = [taylorseer(times, now, each, limit) for each in range(min(order + 1, len(times)))]
    return min(candidates, key=lambda weights: float(np.linalg.norm(weights @ stored - observation)))


def foca(times: Sequence[float], now: float, limit: float = math.inf) -> Vector:
    """Predictor, its slope at the end, the mean of chord and end slope, step by step; a line if that is too much."""
    weights = _corrected(times, now)
    return weights if np.abs(weights).sum() <= limit * (1 + 1e-9) else taylorseer(times, now, 1, limit)


def _corrected(times: Sequence[float], now: float) -> Vector:
    values = np.eye(len(times))
    if len(times) == 1:
        return values[0]
    at = np.array(times[:3]) - times[0]
    slope = np.linalg.solve(np.vander(at, increasing=True), values[:3])[1]  # of the parabola, or of the line
    forward = now - times[0]
    ratio = forward / (times[0] - times[1])
    newest, older = (1 + ratio) ** 2 * values[0], ratio**2 * values[1]
    predictor = (newest - older + forward * (1 + ratio) * slope) / (1 + 2 * ratio)
    end_slope = ((1 + 2 * ratio) * predictor - newest + older) / (forward * (1 + ratio))
    chord = (predictor - values[0]) / forward
    return np.asarray(values[0] + forward / 2 * (chord + end_slope))


def dmd(
    times: Sequence[float],
    now: float,
    stored: ArrayLike,
    rank: int = 0,
    ridge: float = 1e-8,
    limit: float = math.inf,
) -> Vector:
    """The singular value decomposition of the snapshots as columns.

    A line where they are few or unevenly spaced, or where the weights' absolute sum is too large.
    """
    gaps = -np.diff(times)
    even = 1 + int(np.cumprod(np.abs(gaps - gaps[:1]) < 1e-6 * np.abs(gaps[:1])).sum())
    weights = np.zeros(len(times))
    line = taylorseer(times, now, 1, limit)
    if even < 4:
        return line
    snapshots = np.asarray(stored, dtype=np.float64)[:even][::-1].T
    older, younger = snapshots[:, :-1], snapshots[:, 1:]
    _, s, vh = np.linalg.svd(older, full_matrices=False)
    kept = rank or int((s > 1e-4 * s[0]).sum())
    v, inverse = vh[:kept].T, 1 / (s[:kept] + ridge * s[0])
    values, modes = np.linalg.eig((older @ v * inverse).T @ younger @ v * inverse)
    combined = v * inverse @ modes
    amplitudes = np.linalg.lstsq(younger @ combined, snapshots[:, -1].astype(complex), rcond=None)[0]
    powers = values.astype(complex) ** ((now - times[0]) / gaps[0])
    weights[: even - 1] = (combined @ (powers * amplitudes)).real[::-1]
    return weights if np.abs(weights).sum() <= limit * (1 + 1e-9) else line


def regression(observation: Vector, stored: Vector, ridge: float, smooth: Vector) -> Vector:
    """Least squares over the weights whose sum is one, which are drawn towards those of a smooth curve."""
    differences = stored - observation
    count = len(stored)
    first = np.eye(count)[0]
    if count == 1 or not differences[0].any():
        return first
    free = np.concatenate([np.ones((1, count - 1)), -np.eye(count - 1)])  # keeps the sum as it is
    share = ridge * np.square(differences).sum(1).mean()
    tall = np.concatenate([differences.T, np.sqrt(share) * np.eye(count)])
    right = np.concatenate([np.zeros(differences.shape[1]), np.sqrt(share) * smooth]) - tall @ first
    return np.asarray(first + free @ np.linalg.lstsq(tall @ free, right, rcond=None)[0])
