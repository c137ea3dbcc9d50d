"""The mask of least error against a search through all masks, with least squares on whole vectors."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from fxcache.calibration.least_error import least_error_mask, moves_of, sensitivities_of


def walk(steps: int, seed: int, size: int = 9) -> np.ndarray:
    """What the trunk adds at the steps; some changes are large."""
    rng = np.random.default_rng(seed)
    changes = rng.normal(size=(steps, size)) * rng.uniform(0.05, 2.0, size=(steps, 1))
    return rng.normal(size=size) * 3 + changes.cumsum(0)


def error(added: np.ndarray, reach: np.ndarray, computed: tuple[int, ...]) -> float:
    """What the best weights on the last two computed steps leave of the sum over every run of reused steps."""
    total = 0.0
    for place, (newest, following) in enumerate(pairwise((*computed, len(added)))):
        run = (reach[newest + 1 : following, None] * added[newest + 1 : following]).sum(0)
        stored = added[[newest, *computed[max(0, place - 1) : place]]].T
        weights = np.linalg.lstsq(stored, run, rcond=None)[0]
        total += float(((run - stored @ weights) ** 2).sum())
    return total


@pytest.mark.parametrize("computed_steps", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("seed", range(4))
def test_no_other_mask_errs_less(computed_steps: int, seed: int) -> None:
    added, reach = walk(8, seed), np.random.default_rng(seed + 100).uniform(0.2, 2.0, 8)
    mask = least_error_mask((added @ added.T).tolist(), reach.tolist(), computed_steps)
    assert mask[0] == 1 and sum(mask) == computed_steps
    every = [(0, *others) for others in combinations(range(1, 8), computed_steps - 1)]
    least = min(error(added, reach, computed) for computed in every)
    assert error(added, reach, tuple(np.flatnonzero(mask).tolist())) == pytest.approx(least, rel=1e-5, abs=1e-6)


def test_all_steps_computed() -> None:
    added = walk(5, 0)
    assert least_error_mask((added @ added.T).tolist(), [1.0] * 5, 5) == [1] * 5


@pytest.mark.parametrize("kind", ["constant", "nothing"])
def test_steps_that_show_nothing_new(kind: str) -> None:
    added = np.ones((6, 4)) * (kind == "constant")
    mask = least_error_mask((added @ added.T).tolist(), [1.0] * 6, 3)
    assert mask[0] == 1 and sum(mask) == 3


def test_where_the_solver_goes_far_is_where_errors_count() -> None:
    added = walk(10, 3)
    products = (added @ added.T).tolist()
    early = least_error_mask(products, [*[10.0] * 5, *[0.1] * 5], 5)
    late = least_error_mask(products, [*[0.1] * 5, *[10.0] * 5], 5)
    assert sum(early[:5]) > sum(late[:5])


def test_neither_the_scale_of_added_nor_that_of_time_matters() -> None:
    added, reach = walk(12, 5), np.linspace(0.5, 2.0, 12)
    masks = [
        least_error_mask((scale**2 * added @ added.T).tolist(), (span * reach).tolist(), 5)
        for scale, span in ((1.0, 1.0), (1e-4, 1000.0), (300.0, 1e-3))
    ]
    assert masks[0] == masks[1] == masks[2]


@pytest.mark.parametrize(
    ("times", "moves"),
    [
        ([1.0, 0.5, 0.125], [0.5, 0.375, 0.375]),  # towards 0, which is nearer than the last step was long
        ([1.0, 0.9, 0.7], [0.1, 0.2, 0.7]),
        ([0.0, 0.5, 0.75], [0.5, 0.25, 0.25]),  # nobody knows where an ascending time ends
        ([0.8, 0.6, 0.6, 0.5, 0.5], [0.2, 0.2, 0.1, 0.1, 0.5]),  # asked twice at one time
        ([0.5, 0.5], [1.0, 1.0]),
        ([7.0], [1.0]),
    ],
)
def test_how_far_a_solver_goes(times: list[float], moves: list[float]) -> None:
    assert moves_of(times) == pytest.approx(moves)


def test_sensitivities_are_those_of_all_branches_together() -> None:
    assert sensitivities_of([[(1.0, 2.0), (0.0, 0.0)], [(8.0, 2.0), (0.0, 0.0)]]) == (1.5, 1.5, 0.0)
