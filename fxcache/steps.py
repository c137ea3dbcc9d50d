"""Masks of steps: which steps of a generation are computed and which may be reused.

A mask is made of bins: ``compute_bins[0]`` ones, ``cache_bins[0]`` zeros, ``compute_bins[1]`` ones, and so on. The four
presets have bins for 4, 6, 8, 9, 15 and 28 steps; above 28 all of them grow. What is too long is cut at the end. Bins
and rules are cache-dit's, and so are the masks, but for two cases: where the cut takes away so many ones that a run of
zeros becomes longer than every bin, and below 10 steps, all bins shrink in proportion instead. Or a mask spreads a
number of computed steps evenly, which is no rule of cache-dit's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest

from fxcache import checks
from fxcache.errors import OptionError

__all__ = ["PRESETS", "preset_mask", "steps_mask"]

Bins = tuple[tuple[int, ...], tuple[int, ...]]
"""Lengths of the runs of ones, and of the runs of zeros between them."""

PRESETS = checks.PRESETS

_FEW: Bins = ((2, 1), (1,))
_SIX: Bins = ((3, 1), (2,))
_BINS: dict[str, dict[int, Bins]] = {
    "slow": {
        4: _FEW,
        6: _SIX,
        8: ((5, 1, 1), (1,)),
        9: ((5, 2, 1), (1,)),
        15: ((4, 2, 2, 2, 1), (1, 1, 1, 1)),
        28: ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
    },
    "medium": {
        4: _FEW,
        6: _SIX,
        8: ((4, 1, 1), (1, 1)),
        9: ((5, 1, 1), (1, 1)),
        15: ((4, 2, 1, 1, 1), (1, 1, 2, 2)),
        28: ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
    },
    "fast": {
        4: _FEW,
        6: _SIX,
        8: ((3, 1, 1), (1, 2)),
        9: ((4, 1, 1), (1, 2)),
        15: ((3, 1, 1, 1, 1), (1, 2, 2, 3)),
        28: ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
    },
    "ultra": {
        4: _FEW,
        6: _SIX,
        8: ((2, 1, 1), (2, 2)),
        9: ((3, 1, 1), (2, 2)),
        15: ((2, 1, 1, 1, 1), (1, 2, 3, 3)),
        28: ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
    },
}
_LARGEST = 28
_LEAST_CUT = 10

_check_steps = checks.integer(1)
_check_preset = checks.choice(*PRESETS)


def steps_mask(
    compute_bins: Sequence[int] | None = None,
    cache_bins: Sequence[int] | None = None,
    total_steps: int | None = None,
    mask_policy: str = "medium",
    computed_steps: int | None = None,
    compute_last: bool = True,
) -> list[int]:
    """Return one 1 (compute) or 0 (may be reused) per step, for the option ``steps_computation_mask``.

    Without bins: a preset, ``mask_policy`` "slow", "medium", "fast" or "ultra", for any ``total_steps`` >= 1; its first
    and last step are 1. With both bins: runs of these lengths in turn, cut to ``total_steps`` (None: all of them). With
    ``computed_steps``: so many ones of ``total_steps``, the first two in a row, which is where a calibrator gets its
    first slope, the others evenly spread; the last step is one of them with ``compute_last``, else the steps behind the
    last 1 are as many as anywhere between two. Of fewer than 3 only the first is where it is in any case.

    Raises OptionError where a value is wrong or the bins do not reach ``total_steps``. Source of presets and bins:
    cache-dit.

    >>> "".join(map(str, steps_mask(total_steps=12, mask_policy="fast")))
    '111010010011'
    >>> steps_mask([2, 1], [3], total_steps=5)
    [1, 1, 0, 0, 0]
    >>> "".join(map(str, steps_mask(total_steps=12, computed_steps=4)))
    '110000100001'
    >>> "".join(map(str, steps_mask(total_steps=12, computed_steps=4, compute_last=False)))
    '110001001000'
    """
    if computed_steps is not None:
        other = compute_bins if compute_bins is not None else cache_bins
        return _spread(computed_steps, total_steps, compute_last, other)
    if compute_bins is None and cache_bins is None:
        steps: int = _check_steps("total_steps", total_steps)
        policy: str = _check_preset("mask_policy", mask_policy)
        return list(preset_mask(policy, steps))
    bins = (_lengths("compute_bins", compute_bins), _lengths("cache_bins", cache_bins))
    mask = _spelled(bins)
    if total_steps is None:
        return mask
    wanted: int = _check_steps("total_steps", total_steps)
    if len(mask) < wanted:
        raise OptionError.of("total_steps", wanted, f"at most {len(mask)}, the sum of the bins")
    return mask[:wanted]


def _spread(computed_steps: object, total_steps: object, compute_last: bool, bins: object) -> list[int]:
    if bins is not None:
        raise OptionError.of("computed_steps", computed_steps, "None together with compute_bins and cache_bins")
    total: int = _check_steps("total_steps", total_steps)
    count: int = _check_steps("computed_steps", computed_steps)
    if count > total:
        raise OptionError.of("computed_steps", count, f"at most {total}, that is total_steps")
    start = 1 if count >= 3 else 0  # the last of the first steps in a row
    gaps = max(1, count - 1 - start + (not compute_last))
    span = total - start - bool(compute_last)
    # whole numbers only: rounding half to even would make gaps of uneven length
    ends = [start + (2 * span * i + gaps) // (2 * gaps) for i in range(count - start)]
    ones = {0, *ends}
    return [int(step in ones) for step in range(total)]


@lru_cache(maxsize=256)
def preset_mask(preset: str, total_steps: int) -> tuple[int, ...]:
    """Return the mask of a preset for a number of steps."""
    known = _BINS[preset]
    bins = _grown(known[min((count for count in known if count >= total_steps), default=_LARGEST)], total_steps)
    if total_steps >= _LEAST_CUT:
        mask = _ending_in_one(_cut(bins, total_steps), total_steps)
        if _longest_run_of_zeros(mask) <= max(bins[1]):
            return mask
    return _ending_in_one(_squeezed(bins, total_steps), total_steps)


def _ending_in_one(bins: Bins, total_steps: int) -> tuple[int, ...]:
    return (*_spelled(bins)[: total_steps - 1], 1)


def _longest_run_of_zeros(mask: Sequence[int]) -> int:
    return max(map(len, "".join(map(str, mask)).split("1")))


def _spelled(bins: Bins) -> list[int]:
    """The mask that the bins stand for."""
    mask: list[int] = []
    for ones, zeros in zip_longest(*bins, fillvalue=0):
        mask += [1] * ones + [0] * zeros
    return mask


def _cut(bins: Bins, total_steps: int) -> Bins:
    """Take steps away, by turns from the last run of zeros and from the last run of ones."""
    runs = [list(bins[1]), list(bins[0])]
    turn = 0
    while sum(map(sum, runs)) > total_steps:
        last = runs[turn % 2]
        last[-1] -= 1
        if not last[-1]:
            last.pop()
        turn += 1
    return tuple(runs[1]), tuple(runs[0])


def _grown(bins: Bins, total_steps: int) -> Bins:
    """Lengthen every run by a share of itself, again and again until the steps are reached or passed."""
    share = total_steps / _LARGEST * 0.5
    runs = [list(bins[0]), list(bins[1])]
    order = [(kind, place) for place in range(min(map(len, bins))) for kind in (0, 1)]
    while sum(map(sum, runs)) < total_steps:
        for kind, place in order:
            runs[kind][place] += max(1, int(bins[kind][place] * share))
            if sum(map(sum, runs)) >= total_steps:
                break
        else:
            runs[0][-1] += 1
    return tuple(runs[0]), tuple(runs[1])


def _squeezed(bins: Bins, total_steps: int) -> Bins:
    """Shorten every run in proportion, the ones rounded and the zeros by their largest remainders."""
    ones, zeros = bins
    whole = sum(ones) + sum(zeros)
    # half rounded up; from two steps on half of them or more are left, so no run of ones vanishes
    kept = tuple((2 * length * total_steps + whole) // (2 * whole) for length in ones)
    left = max(0, total_steps - sum(kept))
    shares = [divmod(length * left, sum(zeros)) for length in zeros]
    missing = left - sum(length for length, _ in shares)
    order = sorted(range(len(zeros)), key=lambda place: -shares[place][1])
    return kept, tuple(length + (order.index(place) < missing) for place, (length, _) in enumerate(shares))


def _lengths(name: str, value: object) -> tuple[int, ...]:
    given = list(value) if isinstance(value, list | tuple) else []
    if not given or not all(isinstance(length, int) and length >= 1 for length in given):
        raise OptionError.of(name, value, "a list of integers >= 1; compute_bins and cache_bins go together")
    return tuple(map(int, given))
